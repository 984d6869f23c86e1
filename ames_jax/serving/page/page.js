"use strict";

const $ = (id) => document.getElementById(id);
const asked = { file: null, id: null, url: null, box: null, answer: null, shown: 0, running: null };
const PAGE = 60, RETRIES = 3;

/** An element with properties and children; text is always set as text. */
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const path = (kind, id) => `${kind}/${id.split("/").map(encodeURIComponent).join("/")}`;

/** The answer of the API as JSON; asks for a token, or again after a while, where the server wants that. */
async function call(address, options = {}, tries = RETRIES) {
  const response = await fetch(address, options);
  if (response.status === 401) {
    await askForToken();
    return call(address, options, tries);
  }
  if (response.status === 503 && tries) {
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    say(`The server is busy; asking again in ${seconds} s …`);
    await new Promise((wake) => setTimeout(wake, 1000 * seconds));
    options.signal?.throwIfAborted();
    return call(address, options, tries - 1);
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function askForToken() {
  const dialog = $("token");
  if (!dialog.open) dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => {
    document.cookie = `ames_token=${encodeURIComponent($("secret").value)}; path=/; SameSite=Strict`;
    done();
  }, { once: true }));
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

// The query

function choose(file, id) {
  if (asked.url?.startsWith("blob:")) URL.revokeObjectURL(asked.url);
  Object.assign(asked, { file, id, url: file ? URL.createObjectURL(file) : path("images", id), box: null });
  document.body.classList.add("asked");
  $("query").hidden = false;
  $("photo").src = asked.url;
  $("photo").alt = $("name").textContent = file ? file.name : id;
  drawBox();
  search();
}

/** Address and options of a request about the query. */
function about(address, parameters) {
  if (asked.box) parameters.box = asked.box.map((value) => value.toFixed(1)).join(",");
  const method = "POST", full = `${address}?${new URLSearchParams(parameters)}`;
  if (asked.id !== null) {
    return [full, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify({ id: asked.id }) }];
  }
  const body = new FormData();
  body.append("image", asked.file);
  return [full, { method, body }];
}

async function search() {
  asked.running?.abort();
  const running = asked.running = new AbortController();
  say("Searching …");
  try {
    const [address, options] = about("search", { top: 40 });
    const answer = await call(address, { ...options, signal: running.signal });
    if (asked.running !== running) return;
    asked.answer = answer;
    say("");
    showTimes(answer.seconds);
    showResults();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  }
}

function showTimes(seconds) {
  const stages = Object.entries(seconds), sum = stages.reduce((total, [, value]) => total + value, 0);
  const bar = element("ul"), table = element("dl");
  stages.forEach(([stage, value], i) => {
    const part = element("li", { className: `stage${i}`, title: stage });
    part.style.width = `${100 * value / sum}%`;
    bar.append(part);
    table.append(element("div", {}, element("dt", { className: `stage${i}`, textContent: stage }),
      element("dd", { textContent: (1000 * value).toFixed(1) })));
  });
  $("times").replaceChildren(element("span", { textContent: `${(1000 * sum).toFixed(0)} ms, of which` }), bar, table);
  $("times").hidden = false;
}

// The box, in pixels of the photo: left, top, right, bottom

const clamp = (value, most) => Math.min(Math.max(value, 0), most);

function drawBox() {
  $("box").hidden = $("whole").hidden = !asked.box;
  if (!asked.box) return;
  const [left, top, right, bottom] = asked.box, { naturalWidth: width, naturalHeight: height } = $("photo");
  Object.assign($("box").style, { left: `${100 * left / width}%`, top: `${100 * top / height}%`,
    width: `${100 * (right - left) / width}%`, height: `${100 * (bottom - top) / height}%` });
}

function startBox(event) {
  const photo = $("photo"), frame = $("frame");
  if (!photo.naturalWidth || event.button) return;
  const at = ({ clientX, clientY }) => {
    const area = photo.getBoundingClientRect();
    return [clamp((clientX - area.left) / area.width, 1) * photo.naturalWidth,
      clamp((clientY - area.top) / area.height, 1) * photo.naturalHeight];
  };
  const start = at(event), before = asked.box, events = new AbortController();
  frame.setPointerCapture(event.pointerId);
  const stop = () => {
    events.abort();
    const size = asked.box ? [asked.box[2] - asked.box[0], asked.box[3] - asked.box[1]] : [0, 0];
    const least = 0.03 * Math.max(photo.naturalWidth, photo.naturalHeight);
    if (asked.box !== before && Math.min(...size) < least) asked.box = null;  // a click, not a box
    drawBox();
    if (asked.box !== before) search();
  };
  frame.addEventListener("pointermove", (moved) => {
    const end = at(moved);
    asked.box = [0, 1, 2, 3].map((i) => (i < 2 ? Math.min : Math.max)(start[i % 2], end[i % 2]));
    drawBox();
  }, { signal: events.signal });
  for (const name of ["pointerup", "pointercancel"]) frame.addEventListener(name, stop, { signal: events.signal });
}

function boxByKey(event) {
  const { naturalWidth: width, naturalHeight: height } = $("photo");
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key === "Enter") search();
  else if (event.key === "Escape" && asked.box) { asked.box = null; search(); }
  else if (event.key in steps && width) {
    const [x, y] = steps[event.key].map((step) => step * 0.04 * Math.max(width, height));
    let [left, top, right, bottom] = asked.box ?? [width / 4, height / 4, 3 * width / 4, 3 * height / 4];
    if (event.shiftKey) [right, bottom] = [clamp(Math.max(right + x, left + 9), width), clamp(Math.max(bottom + y, top + 9), height)];
    else {
      const dx = clamp(left + x, width - (right - left)) - left, dy = clamp(top + y, height - (bottom - top)) - top;
      [left, top, right, bottom] = [left + dx, top + dy, right + dx, bottom + dy];
    }
    asked.box = [left, top, right, bottom];
  } else return;
  event.preventDefault();
  drawBox();
}

// Results

function showResults() {
  const order = new FormData($("view")).get("order"), scores = $("scores").checked, lists = $("lists");
  const titles = { hits: "Re-ranked", first_stage: "First stage" };
  const kinds = order === "both" ? ["first_stage", "hits"] : [order];
  lists.classList.toggle("both", order === "both");
  lists.replaceChildren(...kinds.map((kind) => element("section", {},
    element("h2", { textContent: titles[kind] }),
    element("div", { className: "grid" },
      ...asked.answer[kind].map((hit, i) => tile(hit.id, () => explain(kind, i), below(hit, i + 1, kind, scores)))))));
  $("found").hidden = false;
}

function below(hit, place, kind, scores) {
  const line = element("span", { className: "place", textContent: place }), parts = [line];
  if (kind === "hits" && hit.old_place !== place) {
    const up = hit.old_place > place;
    parts.push(element("span", { className: up ? "up" : "down", textContent: ` ${up ? "▲" : "▼"} from ${hit.old_place}` }));
  }
  if (scores) {
    const local = hit.logit === null ? ["not re-ranked"] : [`score ${hit.score.toFixed(3)}`, `logit ${hit.logit.toFixed(1)}`];
    const texts = [...local, `global ${hit.global.toFixed(3)}`];
    parts.push(element("span", { className: "numbers" }, ...texts.map((textContent) => element("span", { textContent }))));
  }
  return parts;
}

function tile(id, action, parts = []) {
  const image = element("img", { src: path("thumbnails", id), alt: "", loading: "lazy" });
  // A name that is cut off loses its beginning, so it is kept from being read from right to left.
  const name = element("span", { className: "id", title: id }, element("bdi", { dir: "ltr", textContent: id }));
  const made = element("button", { type: "button", className: "tile", onclick: action },
    image, element("span", { className: "below" }, ...parts, name));
  made.dataset.id = id;
  return made;
}

// The explanation

const SVG = "http://www.w3.org/2000/svg";
const explained = { kind: "hits", place: 0, answer: null, pictures: [] };

function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function load(url) {
  return new Promise((done, failed) => {
    const image = element("img", { src: url });
    image.onload = () => done(image);
    image.onerror = () => failed(new Error("the picture cannot be shown by this browser"));
  });
}

async function explain(kind, place) {
  const hit = asked.answer[kind][place];
  Object.assign(explained, { kind, place, answer: null });
  $("score").replaceChildren(element("strong", { textContent: hit.id }), element("small", { textContent: "Explaining …" }));
  $("drawing").replaceChildren();
  if (!$("why").open) $("why").showModal();
  try {
    const [answer, ...pictures] = await Promise.all([
      call(...about("explain", { id: hit.id })), load(asked.url), load(path("images", hit.id))]);
    if (explained.place !== place || explained.kind !== kind) return;
    Object.assign(explained, { answer, pictures });
    $("lines").max = answer.pairs.length;
    const local = 1 / (1 + Math.exp(-answer.gamma * answer.logit));
    $("score").lastChild.textContent = `score ${answer.score.toFixed(3)} = ${answer.lam} · global ${answer.global.toFixed(3)} + ` +
      `${+(1 - answer.lam).toFixed(3)} · local ${local.toFixed(3)} (logit ${answer.logit.toFixed(2)}); ` +
      `${answer.pairs.length} correspondences`;
    drawExplanation();
  } catch (error) {
    $("score").lastChild.textContent = error.message;
  }
}

function drawExplanation() {
  if (!explained.answer) return;
  const { answer, pictures } = explained, wide = window.innerWidth > 700, gap = 20, side = 1000;
  // Both pictures get one height side by side, or one width above each other.
  const scales = pictures.map((image) => side / (wide ? image.naturalHeight : image.naturalWidth));
  const sizes = pictures.map((image, i) => [image.naturalWidth * scales[i], image.naturalHeight * scales[i]]);
  const offset = [[0, 0], wide ? [sizes[0][0] + gap, 0] : [0, sizes[0][1] + gap]];
  const total = [offset[1][0] + sizes[1][0], offset[1][1] + sizes[1][1]];
  const drawing = svg("svg", { viewBox: `0 0 ${total[0]} ${total[1]}`, role: "img", "aria-label": "Correspondences" });
  const at = (i, x, y) => [offset[i][0] + x * sizes[i][0], offset[i][1] + y * sizes[i][1]];
  pictures.forEach((image, i) => drawing.append(svg("image", { href: image.src, x: offset[i][0], y: offset[i][1],
    width: sizes[i][0], height: sizes[i][1], opacity: 0.85 })));
  if (asked.box) {
    const { naturalWidth: width, naturalHeight: height } = pictures[0], [left, top, right, bottom] = asked.box;
    const [x, y] = at(0, left / width, top / height), [x2, y2] = at(0, right / width, bottom / height);
    drawing.append(svg("rect", { x, y, width: x2 - x, height: y2 - y }));
  }
  const pairs = answer.pairs.slice(0, $("lines").value), strongest = pairs[0]?.[4] || 1;
  for (const [x, y, other, below, strength] of pairs.toReversed()) {
    const share = strength / strongest, [x1, y1] = at(0, x, y), [x2, y2] = at(1, other, below);
    drawing.append(svg("line", { x1, y1, x2, y2, stroke: `hsl(${50 + 230 * (1 - share)} 95% ${45 + 15 * share}%)`,
      "stroke-width": 1 + 2 * share, "stroke-opacity": 0.3 + 0.65 * share }));
  }
  if ($("attention").checked) {
    const most = Math.max(...answer.query_attention.concat(answer.image_attention).map((point) => point[2]), 1e-9);
    [answer.query_attention, answer.image_attention].forEach((points, i) => points.forEach(([x, y, weight]) => {
      const [cx, cy] = at(i, x, y);
      drawing.append(svg("circle", { cx, cy, r: 45 * Math.sqrt(weight / most) }));
    }));
  }
  $("drawing").replaceChildren(drawing);
}

function step(by) {
  const place = explained.place + by;
  if (place >= 0 && place < asked.answer[explained.kind].length) explain(explained.kind, place);
}

// The collection

async function showCollection(start = 0) {
  const find = $("find").value;
  const found = await call(`images?${new URLSearchParams({ start, count: PAGE, find })}`);
  if (find !== $("find").value) return;
  const tiles = found.ids.map((id) => tile(id, () => { choose(null, id); window.scrollTo({ top: 0, behavior: "smooth" }); }));
  if (start) $("pictures").append(...tiles);
  else $("pictures").replaceChildren(...tiles);
  asked.shown = start + tiles.length;
  $("more").hidden = asked.shown >= found.images;
  if (!find) $("facts").textContent = `${found.name}: ${found.images.toLocaleString("en")} images`;
}

// What is clicked, dropped, pasted and pressed

const imageOf = (items) => [...(items?.files ?? [])].find((file) => file.type.startsWith("image/") || !file.type);

$("file").onchange = (event) => { if (event.target.files[0]) choose(event.target.files[0], null); event.target.value = ""; };
$("drop").onkeydown = (event) => { if (["Enter", " "].includes(event.key)) { event.preventDefault(); $("file").click(); } };
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
document.addEventListener("dragleave", () => document.body.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const file = imageOf(event.dataTransfer);
  if (file) choose(file, null); else say("that is no picture file", true);
});
document.addEventListener("paste", (event) => { const file = imageOf(event.clipboardData); if (file) choose(file, null); });
$("photo").onload = drawBox;
$("photo").onerror = () => { $("photo").alt = "this browser cannot show the picture"; };
$("frame").onpointerdown = startBox;
$("frame").onkeydown = boxByKey;
$("whole").onclick = () => { asked.box = null; drawBox(); search(); };
$("view").onchange = showResults;
$("lines").oninput = $("attention").onchange = drawExplanation;
window.addEventListener("resize", drawExplanation);
$("close").onclick = () => $("why").close();
$("previous").onclick = () => step(-1);
$("next").onclick = () => step(1);
$("why").onkeydown = (event) => {
  if (event.target !== $("lines") && ["ArrowLeft", "ArrowRight"].includes(event.key)) step(event.key === "ArrowLeft" ? -1 : 1);
};
$("again").onclick = () => { $("why").close(); choose(null, asked.answer[explained.kind][explained.place].id); };
$("find").oninput = () => { clearTimeout(asked.typing); asked.typing = setTimeout(() => showCollection(), 200); };
$("more").onclick = () => showCollection(asked.shown);
showCollection().catch((error) => say(error.message, true));
