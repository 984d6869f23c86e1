"use strict";

// The page but for explanations, which explanation.js draws.

const $ = (id) => document.getElementById(id);
const asked = { file: null, id: null, url: null, box: null, answer: null, shown: 0, running: null };
const files = [];  // photos that were searched for, to which "back" may lead
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
    $("wanted").textContent = "That was not the token of this server";
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
  $("status").textContent = text && text[0].toUpperCase() + text.slice(1);
  $("status").classList.toggle("wrong", wrong);
}

// The query

/** Searches for a file or an image of the collection; each is an entry of the history, an image has an address of its own. */
function choose(file, id, entry = true) {
  if (entry) history.pushState({ file: file && files.push(file) - 1 }, "", file ? location.pathname : `#${encodeURIComponent(id)}`);
  if (asked.url?.startsWith("blob:")) URL.revokeObjectURL(asked.url);
  Object.assign(asked, { file, id, url: file ? URL.createObjectURL(file) : path("images", id), box: null });
  document.body.classList.add("asked");
  $("query").hidden = false;
  $("photo").src = asked.url;
  $("photo").alt = $("name").textContent = file ? file.name : id;
  $("itself").hidden = true;
  showChanges();
  drawBox();
  search();
}

/** Shows the collection alone, as at the beginning. */
function forget() {
  asked.running?.abort();
  Object.assign(asked, { file: null, id: null, url: null, box: null, answer: null });
  document.body.classList.remove("asked");
  for (const name of ["query", "itself", "found", "times"]) $(name).hidden = true;
  say("");
}

/** The id in an address; one typed by hand may hold a % that encodes nothing. */
function decoded(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

/** What the address and the history say. */
function revisit() {
  if ($("why").open) $("why").close();
  const file = files[history.state?.file];
  if (file) choose(file, null, false);
  else if (location.hash.length > 1) choose(null, decoded(location.hash.slice(1)), false);
  else forget();
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
  $("found").ariaBusy = "true";
  try {
    const [address, options] = about("search", { top: 40 });
    const answer = await call(address, { ...options, signal: running.signal });
    if (asked.running !== running) return;
    asked.answer = answer;
    say("");
    $("found").ariaBusy = "false";
    showTimes(answer.seconds);
    showItself(answer.query_id);
    showResults();
  } catch (error) {
    if (error.name === "AbortError") return;
    for (const name of ["found", "times"]) $(name).hidden = true;  // those of another search
    asked.answer = null;
    showChanges();
    say(error.message, true);
  }
}

/** Says that a photo from elsewhere is one of the collection. */
function showItself(id) {
  $("itself").hidden = id === null || asked.id !== null;
  $("itself").replaceChildren("This very photo is in the collection, and left out of its own results: ",
    element("a", { href: `#${encodeURIComponent(id)}`, textContent: id }));
  showChanges();
}

function showTimes(seconds) {
  const stages = Object.entries(seconds), sum = stages.reduce((total, [, value]) => total + value, 0);
  const bar = element("ul"), table = element("dl");
  const summary = element("summary", {}, element("span", { textContent: `${(1000 * sum).toFixed(0)} ms` }), bar);
  stages.forEach(([stage, value], i) => {
    const part = element("li", { className: `stage${i}`, title: stage });
    part.style.width = `${100 * value / sum}%`;
    bar.append(part);
    table.append(element("div", {}, element("dt", { className: `stage${i}`, textContent: stage }),
      element("dd", { textContent: (1000 * value).toFixed(1) })));
  });
  $("times").replaceChildren(summary, table);
  if ($("times").hidden) $("times").open = window.innerWidth > 832;  // on a phone, the results come first
  $("times").hidden = false;
}

// Changes of the collection

function showChanges() {
  $("add").hidden = !(asked.changeable && asked.file && asked.answer) || !$("itself").hidden;
  $("remove").hidden = !(asked.changeable && asked.id !== null);
}

/** Asks for a change, says what became of it, and shows the collection as it is then. */
async function change(address, options, done) {
  for (const name of ["add", "remove"]) $(name).disabled = true;
  try {
    const answer = await call(address, options);
    await showCollection();
    say(done(answer));
    return true;
  } catch (error) {
    say(error.message, true);
    return false;
  } finally {
    for (const name of ["add", "remove"]) $(name).disabled = false;
  }
}

function add() {
  const body = new FormData();
  body.append("image", asked.file);
  // A name that the server would not take is left to it.
  if (/^[\p{L}\p{N}_][\p{L}\p{N}_. +-]{0,99}$/u.test(asked.file.name)) body.append("id", asked.file.name);
  return change("images", { method: "POST", body }, (answer) => `Added as ${answer.id}.`);
}

async function remove() {
  const id = asked.id;
  if (!confirm(`Remove ${id} from the collection?`)) return;
  const done = await change(path("images", id), { method: "DELETE" }, () => `Removed ${id}.`);
  if (!done || asked.id !== id) return;
  const said = $("status").textContent;
  forget();
  say(said);
  history.replaceState(null, "", location.pathname);
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
    element("h2", { textContent: titles[kind], className: kinds.length > 1 ? "" : "unseen" }),
    element("div", { className: "grid" },
      ...asked.answer[kind].map((hit, i) => tile(hit.id, hit.label, () => explain(kind, i), below(hit, i + 1, kind, scores)))))));
  $("nomatch").hidden = asked.answer.match !== false;
  $("nomatch").textContent = "No match: none of these is likely to show what the photo shows.";
  $("found").hidden = false;
}

function below(hit, place, kind, scores) {
  const line = element("span", { className: "place", textContent: place }), parts = [line];
  if (kind === "hits" && hit.old_place !== place) {
    const up = hit.old_place > place;
    parts.push(element("span", { className: up ? "up" : "down", textContent: ` ${up ? "▲" : "▼"} from ${hit.old_place}` }));
  }
  if (kind === "hits" && hit.probability !== null) {
    const chance = hit.probability < 0.005 ? "< 1" : Math.min(Math.round(100 * hit.probability), 99);
    parts.push(element("span", { className: "chance", textContent: ` · ${chance} %`, title: "probability that it shows the same" }));
  }
  if (scores) {
    const local = hit.logit === null ? ["not re-ranked"] : [`score ${hit.score.toFixed(3)}`, `logit ${hit.logit.toFixed(1)}`];
    const between = asked.answer.hits.findIndex((other) => other.id === hit.through) + 1;
    const chain = hit.through ? [`through ${between ? `place ${between}` : hit.through}`] : [];
    const texts = [...local, `global ${hit.global.toFixed(3)}`, ...chain];
    parts.push(element("span", { className: "numbers" }, ...texts.map((textContent) => element("span", { textContent }))));
  }
  return parts;
}

function tile(id, label, action, parts = []) {
  const image = element("img", { src: path("thumbnails", id), alt: "", loading: "lazy" });
  const folders = id.split("/"), file = folders.pop();
  const name = element("span", { className: "id", title: id },
    ...(folders.length ? [element("span", { textContent: `${folders.join("/")}/` })] : []), element("span", { textContent: file }));
  const made = element("button", { type: "button", className: "tile", onclick: action },
    image, element("span", { className: "below" }, ...parts,
      ...(label && label !== folders.at(-1) ? [element("span", { className: "label", textContent: label })] : []), name));
  made.dataset.id = id;
  return made;
}

// The collection

async function showCollection(start = 0) {
  const find = $("find").value;
  const found = await call(`images?${new URLSearchParams({ start, count: PAGE, find })}`);
  if (find !== $("find").value) return;
  const tiles = found.ids.map((id, i) => tile(id, found.labels[i], () => { choose(null, id); window.scrollTo({ top: 0, behavior: "smooth" }); }));
  if (start) $("pictures").append(...tiles);
  else $("pictures").replaceChildren(...tiles);
  asked.shown = start + tiles.length;
  asked.changeable = found.changeable;
  showChanges();
  $("more").hidden = asked.shown >= found.images;
  $("nothing").hidden = found.images > 0;
  $("nothing").textContent = find ? "No image has this in its name." : "The collection is empty.";
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
  if (file) choose(file, null); else say("That is no picture file.", true);
});
document.addEventListener("paste", (event) => { const file = imageOf(event.clipboardData); if (file) choose(file, null); });
$("photo").onload = () => { $("query").classList.remove("unshown"); drawBox(); };
$("photo").onerror = () => $("query").classList.add("unshown");  // it may be searched for all the same
$("frame").onpointerdown = startBox;
$("frame").onkeydown = boxByKey;
$("add").onclick = add;
$("remove").onclick = remove;
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
window.addEventListener("popstate", revisit);
showCollection().then(() => location.hash && revisit(), (error) => say(error.message, true));
