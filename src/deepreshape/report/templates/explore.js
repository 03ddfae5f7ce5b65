"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const svg = (name, attributes, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
const html = (name, text, className) => {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
};
const short = (value) => {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["K", 1e3]]) if (value >= size) return `${+(value / size).toPrecision(3)}${unit}`;
  return `${+value.toPrecision(3)}`;
};
const whole = (value) => value.toLocaleString("en");

const state = { chosen: null, off: new Set() };
const term = () => `${at("protocol").value}, ${at("link").value}`;
const price = (point) => point.priced[term()];
const cost = {
  relus: (point) => point.relus,
  macs: (point) => point.macs,
  total: (point) => price(point)?.seconds.total,
  online: (point) => price(point)?.seconds.online,
  bytes: (point) => price(point)?.bytes.total,
};
const named = (point) => `${point.network}: ${point.plan}`;

function fill() {
  const parts = data.terms.map((name) => name.split(", "));
  for (const [id, index] of [["protocol", 0], ["link", 1]])
    for (const value of new Set(parts.map((part) => part[index]))) at(id).append(new Option(value, value));
  for (const name of Object.keys(data.looks)) {
    const box = Object.assign(html("input"), { type: "checkbox", checked: true });
    box.addEventListener("change", () => { state.off[box.checked ? "delete" : "add"](name); draw(); });
    const label = html("label");
    const swatch = svg("svg", { viewBox: "-7 -7 14 14", width: 14, height: 14, "aria-hidden": "true" });
    swatch.append(svg("path", { d: data.looks[name].shape, fill: data.looks[name].color }));
    label.append(box, swatch, name);
    at("networks").append(label);
  }
  for (const id of ["axis", "protocol", "link"]) at(id).addEventListener("change", () => { draw(); show(state.chosen); });
}

function ticks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const factor of [1, 2, 5]) found.push(factor * 10 ** power);
  const within = found.filter((value) => value >= low && value <= high);
  return within.length > 1 ? within : [low, high];
}

function front(points, x) {
  let best = -Infinity;
  return [...points].sort((a, b) => x(a) - x(b) || b.top1 - a.top1).filter((point) => point.top1 > best && ((best = point.top1), true));
}

function stairs(corners) {
  return corners.flatMap(([px, py], at) => (at ? [`${px},${corners[at - 1][1]}`, `${px},${py}`] : [`${px},${py}`]));
}

function draw() {
  const plane = at("plane"), [left, right, top, bottom] = [52, 626, 14, 374], x = cost[at("axis").value];
  const points = data.points.filter((point) => !state.off.has(point.network) && x(point) > 0);
  plane.replaceChildren();
  if (!points.length) return;
  const logs = points.map((point) => Math.log10(x(point))), [low, high] = [Math.min(...logs) - 0.05, Math.max(...logs) + 0.05];
  const tops = points.flatMap((point) => [point.top1 - (point.spread ?? 0), point.top1 + (point.spread ?? 0)]);
  const margin = (Math.max(...tops) - Math.min(...tops) || 1) * 0.06;
  const [least, most] = [Math.min(...tops) - margin, Math.max(...tops) + margin];
  const across = (value) => left + ((Math.log10(value) - low) / (high - low)) * (right - left);
  const down = (value) => bottom - ((value - least) / (most - least)) * (bottom - top);
  for (const value of ticks(10 ** low, 10 ** high))
    plane.append(svg("line", { class: "grid", x1: across(value), x2: across(value), y1: top, y2: bottom }), svg("text", { x: across(value), y: bottom + 17, "text-anchor": "middle" }, short(value)));
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20].find((size) => (most - least) / size <= 8) ?? 50;
  for (let value = Math.ceil(least / step) * step; value <= most; value += step)
    plane.append(svg("line", { class: "grid", x1: left, x2: right, y1: down(value), y2: down(value) }), svg("text", { x: left - 7, y: down(value) + 4, "text-anchor": "end" }, +value.toFixed(1)));
  plane.append(svg("text", { x: (left + right) / 2, y: bottom + 37, "text-anchor": "middle" }, at("axis").selectedOptions[0].text));
  plane.append(svg("text", { x: 14, y: (top + bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${(top + bottom) / 2})` }, `test ${data.metric}, %`));
  plane.append(svg("polyline", { class: "front", points: stairs(front(points, x).map((point) => [across(x(point)), down(point.top1)])).join(" ") }));
  const row = [...points].sort((a, b) => x(a) - x(b));
  for (const point of row) {
    const look = data.looks[point.network], [px, py] = [across(x(point)), down(point.top1)];
    if (point.spread) plane.append(svg("line", { stroke: look.color, x1: px, x2: px, y1: down(point.top1 - point.spread), y2: down(point.top1 + point.spread) }));
    const said = price(point);
    const text = `${named(point)}. ${point.top1.toFixed(2)} % ${data.metric}, ${whole(point.relus)} ReLUs, ${whole(Math.round(point.macs / 1e6))} M MACs` + (said ? `, ${short(said.seconds.total)} s of which ${short(said.seconds.online)} online, ${short(said.bytes.total)}B` : "");
    const mark = svg("path", { class: "mark", d: look.shape, fill: look.color, transform: `translate(${px} ${py}) scale(1.25)`, tabindex: 0, role: "button", "aria-label": text });
    const tell = () => (at("told").textContent = text);
    mark.addEventListener("pointerenter", tell);
    mark.addEventListener("focus", tell);
    mark.addEventListener("click", () => show(point));
    mark.addEventListener("keydown", (event) => {
      const way = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (way) plane.querySelectorAll(".mark")[(row.indexOf(point) + way + row.length) % row.length].focus();
      else if (event.key === "Enter" || event.key === " ") show(point);
      else return;
      event.preventDefault();
    });
    if (point === state.chosen) mark.classList.add("chosen");
    plane.append(mark);
  }
}

function bar(label, parts, most, told) {
  const node = html("div", undefined, "bar"), line = html("i");
  node.title = `${label}: ${told}`;
  for (const [kind, value] of parts) {
    const piece = html("b", undefined, kind);
    piece.style.width = `${(100 * value) / (most || 1)}%`;
    line.append(piece);
  }
  node.append(html("span", label), line, html("span", told));
  return node;
}

function list(values) {
  const node = html("dl");
  for (const [key, value] of Object.entries(values)) node.append(html("dt", key), html("dd", value));
  return node;
}

function show(point) {
  state.chosen = point;
  const detail = at("detail");
  detail.replaceChildren();
  for (const mark of at("plane").querySelectorAll(".mark")) mark.classList.toggle("chosen", Boolean(point) && mark.getAttribute("aria-label").startsWith(`${named(point)}.`));
  if (!point) return;
  const said = price(point);
  detail.append(html("h3", named(point)));
  const facts = { ReLUs: whole(point.relus), MACs: whole(point.macs) };
  if (point.params) facts.parameters = whole(point.params);
  if (point.top1 !== null) facts[data.metric] = `${point.top1.toFixed(2)} %` + (point.spread === null ? ", one seed" : ` ± ${point.spread.toFixed(2)} over ${point.seeds} seeds`);
  if (said) {
    Object.assign(facts, {
      [term()]: `${short(said.seconds.offline)} s offline, ${short(said.seconds.online)} s online, ${said.rounds} rounds`,
      bytes: `${short(said.bytes.offline)}B offline, ${short(said.bytes.online)}B online`,
      stored: `${short(said.stored.client)}B at the client, ${short(said.stored.server)}B at the server`,
    });
  }
  detail.append(list(facts));
  if (said) {
    detail.append(html("p", said.advice), html("h4", "Seconds by layer (blue offline, orange online)"));
    const most = Math.max(...said.layers.map(([, offline, online]) => offline + online));
    for (const [name, offline, online] of said.layers) detail.append(bar(name, [["offline", offline], ["online", online]], most, `${short(offline + online)} s`));
  }
  if (point.sites.length) {
    detail.append(html("h4", "ReLUs kept at each site"));
    for (const [name, kept, all] of point.sites) detail.append(bar(name, [["kept", kept]], all, kept ? whole(kept) : "removed"));
  }
  if (Object.keys(point.settings).length) detail.append(html("h4", "Settings"), list(Object.fromEntries(Object.entries(point.settings).map(([key, value]) => [key, String(value)]))));
  if (point.commands?.length) detail.append(html("h4", "Commands"), html("pre", point.commands.join("\n")));
}

document.addEventListener("keydown", (event) => { if (event.key === "Escape") show(null); });
fill();
if (data.terms.length || data.points.length) at("explore").hidden = false;
draw();
show(data.points.find((point) => `#${named(point)}` === decodeURIComponent(location.hash)) ?? null);
