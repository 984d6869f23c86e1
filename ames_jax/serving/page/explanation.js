"use strict";

// The dialog that shows what connects the query and a result; page.js has the rest of the page.

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
  const count = asked.answer[kind].length;
  $("previous").ariaDisabled = String(place === 0);
  $("next").ariaDisabled = String(place === count - 1);
  $("score").replaceChildren(element("strong", { textContent: hit.id }), ` ${place + 1} of ${count}`, element("small", { textContent: "Explaining …" }));
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
    if (explained.place === place && explained.kind === kind) $("score").lastChild.textContent = error.message;
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
