"use strict";
const circuit = JSON.parse(document.getElementById("circuit").textContent);
const svg = document.querySelector(".picture svg");
const picture = svg.parentElement;
const panel = document.getElementById("panel");
const tip = document.getElementById("tip");
const slider = document.getElementById("threshold");
const shapes = [...svg.querySelectorAll(".node")];
const wires = [...svg.querySelectorAll(".wire")];
const hits = [...svg.querySelectorAll(".hit")];
const shapeOf = new Map(shapes.map((shape) => [Number(shape.dataset.node), shape]));

function make(tag, text, kind) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function amount(share) {
  return make("span", share.text, "amount " + (share.value < 0 ? "minus" : "plus"));
}

// ---- what is said about a node ------------------------------------------------------------

function flows(title, list, end) {
  if (!list.length) return [];
  const items = make("ol");
  for (const flow of list.slice(0, 12)) {
    const item = make("li");
    const other = circuit.nodes[flow[end]];
    if (shapeOf.has(flow[end])) {
      const button = make("button", other.title);
      button.type = "button";
      button.addEventListener("click", () => { choose(flow[end]); shapeOf.get(flow[end]).focus(); });
      item.append(button);
    } else item.append(make("span", other.title));
    item.append(amount(flow.share));
    items.append(item);
  }
  const more = list.length > 12 ? [make("p", "and " + (list.length - 12) + " smaller ones")] : [];
  return [make("h3", title), items, ...more];
}

function bars(values, own) {
  const box = make("div", undefined, "bars");
  const largest = Math.max(...values.map(Math.abs)) || 1;
  const up = Math.max(0, ...values) / largest, down = Math.max(0, ...values.map((v) => -v)) / largest;
  const unit = 84 / (up + down || 1);
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", values.length + " values: " + values.map((v) => v.toPrecision(3)).join(", "));
  values.forEach((value, i) => {
    const column = make("div"), space = make("i"), bar = make("i");
    const size = (Math.abs(value) / largest) * unit;
    space.style.height = (value >= 0 ? up * unit - size : up * unit) + "px";
    bar.style.height = Math.max(size, 1) + "px";
    bar.style.background = value < 0 ? "#d55e00" : "#0072b2";
    if (i === own) bar.className = "own";
    column.title = i + ": " + value.toPrecision(4);
    column.append(space, bar);
    box.append(column);
  });
  return box;
}

function detail(name, kind, value, own) {
  const title = make("h3", name);
  if (kind === "numbers") return [title, bars(value, own)];
  if (kind === "tokens") {
    const line = make("p");
    for (const token of value) line.append(make("span", token, "token"));
    return [title, line];
  }
  if (kind === "pairs") {
    const items = make("ol");
    for (const [text, share] of value) {
      const item = make("li");
      item.append(make("span", text, "token"), amount(share));
      items.append(item);
    }
    return [title, items];
  }
  return [title, make("p", value)];
}

function describe(index) {
  const node = circuit.nodes[index];
  const facts = make("dl");
  for (const [name, value] of node.facts) facts.append(make("dt", name), make("dd", value));
  const details = node.details.flatMap(([name, kind, value]) => detail(name, kind, value, node.index));
  const into = circuit.edges.filter((edge) => edge.target === index);
  const out = circuit.edges.filter((edge) => edge.source === index);
  panel.replaceChildren(
    make("h2", node.title), facts, ...details,
    ...flows("flows in from", into, "source"), ...flows("flows out to", out, "target"),
  );
}

function choose(index) {
  picture.classList.toggle("some", index !== null);
  const near = new Set();
  for (const wire of wires) {
    const edge = circuit.edges[wire.dataset.edge];
    const lit = edge.source === index || edge.target === index;
    wire.classList.toggle("lit", lit);
    if (lit) near.add(edge.source).add(edge.target);
  }
  for (const [other, shape] of shapeOf) {
    shape.classList.toggle("chosen", other === index);
    shape.classList.toggle("near", near.has(other));
    shape.setAttribute("aria-pressed", String(other === index));
  }
  if (index !== null) describe(index);
}

// ---- numbers under the pointer ------------------------------------------------------------

function show(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const left = Math.min(x + 14, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = y + 18 + tip.offsetHeight < window.innerHeight;
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = Math.max(4, below ? y + 18 : y - tip.offsetHeight - 10) + "px";
}

function words(element) {
  if (element.dataset.node !== undefined) {
    const node = circuit.nodes[element.dataset.node];
    return node.title + "\n" + node.share.text + " logits" + (node.brief ? "\n" + node.brief : "");
  }
  if (element.dataset.rest !== undefined) return circuit.rests[element.dataset.rest];
  const edge = circuit.edges[element.dataset.edge];
  return circuit.nodes[edge.source].title + "\n→ " + circuit.nodes[edge.target].title + "\n" + edge.share.text + " logits";
}

svg.addEventListener("pointermove", (event) => {
  const element = event.target.closest("[data-node], [data-edge], [data-rest]");
  if (element && !drag) show(words(element), event.clientX, event.clientY);
  else tip.hidden = true;
});
svg.addEventListener("pointerleave", () => { tip.hidden = true; });

for (const [index, shape] of shapeOf) {
  shape.addEventListener("focus", () => {
    if (!shape.matches(":focus-visible")) return;
    const place = shape.getBoundingClientRect();
    show(words(shape), place.right, place.top);
  });
  shape.addEventListener("blur", () => { tip.hidden = true; });
  shape.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") choose(index);
    else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const [here, there] = event.key === "ArrowUp" ? ["source", "target"] : ["target", "source"];
      const edge = circuit.edges.find((e) => e[here] === index && shapeOf.has(e[there]));
      if (edge) shapeOf.get(edge[there]).focus();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

// ---- threshold ----------------------------------------------------------------------------

function sift() {
  const threshold = circuit.largest * (slider.value / slider.max) ** 2;
  const alive = new Set();
  let shown = 0;
  for (const wire of wires) {
    const edge = circuit.edges[wire.dataset.edge];
    const small = Math.abs(edge.share.value) < threshold;
    wire.classList.toggle("gone", small);
    if (!small) { shown += 1; alive.add(edge.source).add(edge.target); }
  }
  for (const hit of hits) {
    const edge = circuit.edges[hit.dataset.edge];
    hit.classList.toggle("gone", edge !== undefined && Math.abs(edge.share.value) < threshold);
  }
  for (const [index, shape] of shapeOf) shape.classList.toggle("alone", !alive.has(index));
  document.getElementById("shown").textContent =
    (threshold ? "|share| ≥ " + threshold.toPrecision(2) : "all") + ": " + shown + " of " + wires.length + " flows";
}
slider.addEventListener("input", sift);
slider.value = slider.max * Math.sqrt(circuit.largest ? circuit.start / circuit.largest : 0);

// ---- pan and zoom -------------------------------------------------------------------------

const whole = svg.getAttribute("viewBox").split(" ").map(Number);
let view = [...whole];
let drag = null;

function look(box) {
  const size = Math.min(whole[2], Math.max(whole[2] / 12, box[2]));
  const high = (size * whole[3]) / whole[2];
  view = [
    Math.min(Math.max(box[0], whole[0]), whole[0] + whole[2] - size),
    Math.min(Math.max(box[1], whole[1]), whole[1] + whole[3] - high), size, high,
  ];
  svg.setAttribute("viewBox", view.join(" "));
}

function zoom(factor, x = 0.5, y = 0.5) {
  const size = Math.min(whole[2], Math.max(whole[2] / 12, view[2] / factor));
  const high = (size * whole[3]) / whole[2];
  look([view[0] + (view[2] - size) * x, view[1] + (view[3] - high) * y, size, high]);
}

function pan(x, y) { look([view[0] + x * view[2], view[1] + y * view[3], view[2], view[3]]); }

svg.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
  event.preventDefault();
  const box = svg.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY / 300), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
}, { passive: false });

svg.addEventListener("pointerdown", (event) => {
  if (event.button === 0) drag = { x: event.clientX, y: event.clientY, view: [...view], far: false, target: event.target };
});
window.addEventListener("pointermove", (event) => {
  if (!drag) return;
  const box = svg.getBoundingClientRect();
  const x = event.clientX - drag.x, y = event.clientY - drag.y;
  drag.far = drag.far || Math.hypot(x, y) > 4;
  picture.classList.toggle("dragged", drag.far);
  if (drag.far) look([drag.view[0] - (x / box.width) * view[2], drag.view[1] - (y / box.height) * view[3], view[2], view[3]]);
});
window.addEventListener("pointercancel", () => { drag = null; picture.classList.remove("dragged"); });
window.addEventListener("pointerup", () => {
  if (drag && !drag.far) {
    const shape = drag.target.closest(".node");
    choose(shape ? Number(shape.dataset.node) : null);
  }
  drag = null;
  picture.classList.remove("dragged");
});

for (const [id, act] of Object.entries({
  closer: () => zoom(1.4), farther: () => zoom(1 / 1.4), reset: () => look(whole),
})) document.getElementById(id).addEventListener("click", act);

const keys = {
  "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), "0": () => look(whole),
  ArrowLeft: () => pan(-0.1, 0), ArrowRight: () => pan(0.1, 0),
  ArrowUp: () => pan(0, -0.1), ArrowDown: () => pan(0, 0.1),
  Escape: () => choose(null),
};
picture.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
  keys[event.key]();
  event.preventDefault();
});
sift();
