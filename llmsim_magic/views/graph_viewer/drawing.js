// `makeInteractive(root)` draws the graphs inside it anew, to zoom, search, open and colour.
// Where scripts do not run, the graphs stay images.
const ZOOM = 1.25, POINT = 4 / 3;
const MANY_ITEMS = 150; // of a drawing whose lines say no shapes
const COLOURINGS = { kind: "kind of work", flops: "FLOPs", bytes: "bytes moved", memory: "memory in use", time: "time", bottleneck: "bottleneck" };
// The colour of each bottleneck is that of a kind of work.
const BOTTLENECKS = { compute: "matmul", memory: "attention", launch: "movement", interconnect: "embedding" };
const KINDS = ["matmul", "attention", "normalisation", "elementwise", "embedding", "movement"];
const FLOWS = ["tensor", "residual", "cache", "saved", "gradient", "next layer"];

const shape = (name, attributes = {}, text = "") => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
};

// `[1, 128]` of `[1, 128] int64`.
const sizeOf = (tensor) => tensor.slice(0, tensor.lastIndexOf("]") + 1);

const flowOf = (edges) => {
  const kinds = new Set(edges.flatMap((edge) => [...edge.kinds]));
  return FLOWS.find((flow) => kinds.has(flow));
};

const swatch = (name, color) => {
  const made = element("span", { class: "llmsim-swatch" }, name);
  made.style.setProperty("--colour", `var(--llmsim-${color})`);
  return made;
};

class Drawing {
  constructor(box) {
    this.box = box;
    this.folding = new Folding(JSON.parse(box.dataset.graph));
    this.data = this.folding.data;
    this.own = `llmsim-${Math.random().toString(36).slice(2)}`;
    this.colouring = "kind";
    this.chosen = this.asked = "";
    this.status = element("span", { role: "status" });
    this.svg = shape("svg", { role: "graphics-document document", "aria-label": this.data.title, tabindex: "0" });
    this.legend = element("div", { class: "llmsim-legend" });
    this.details = new Details(this.folding, (item) => this.pick(item), () => this.pick(null));
    const stage = element("div", { class: "llmsim-stage" });
    stage.append(this.svg, this.details.element);
    box.replaceChildren(this.toolbar(), this.legend, stage);
    this.listen();
    this.draw();
    this.natural();
  }

  toolbar() {
    const bar = element("div", { class: "llmsim-bar" });
    const button = (sign, label, act) => {
      const made = element("button", { type: "button", title: label, "aria-label": label }, sign);
      made.addEventListener("click", act);
      bar.append(made);
    };
    button("−", "zoom out", () => this.zoom(ZOOM));
    button("+", "zoom in", () => this.zoom(1 / ZOOM));
    button("fit", "show the whole drawing", () => this.fit());
    button("full size", "text as large as the page's", () => this.natural());
    const colours = element("select", { "aria-label": "colour by" });
    for (const [name, label] of Object.entries(COLOURINGS)) {
      const value = (node) => (name === "bottleneck" ? node.bottleneck : node.values[name]);
      const isKnown = name === "kind" || this.data.nodes.some((node) => value(node) !== null);
      if (isKnown) colours.append(element("option", { value: name }, label));
    }
    colours.addEventListener("change", () => {
      this.colouring = colours.value;
      this.colour();
    });
    const search = element("input", { type: "search", placeholder: "find a node", "aria-label": "find a node" });
    this.search = search;
    search.addEventListener("input", () => this.find());
    search.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter") this.next();
    });
    bar.append(element("label", {}, "colour by"), colours, search, this.status, element("span", { class: "llmsim-caption" }, this.data.caption));
    return bar;
  }

  // Draw anew what is open now. What was clicked, and is at another path now, stays where it is on
  // the screen.
  draw(clicked = "", now = clicked) {
    const old = clicked ? this.anchorOf(clicked) : null;
    const root = this.folding.items();
    this.edges = this.folding.edges();
    this.items = [...this.folding.known.values()].filter((item) => item.kind !== "root");
    for (const item of this.items) this.label(item);
    this.layout = new Layout(root, this.edges, Boolean(this.data.ranks) && this.items.length < MANY_ITEMS);
    this.root = root;
    this.groups = new Map();
    const grounds = shape("g"), boxes = shape("g"), lines = shape("g"), nodes = shape("g");
    for (const item of this.items) (item.kind === "box" ? boxes : nodes).append(...this.shapesOf(item));
    for (const { kind, x, y, width, height } of this.items) {
      if (kind === "box") grounds.append(shape("rect", { x, y, width, height, rx: 6, class: "llmsim-ground" }));
    }
    for (const line of this.layout.lines) lines.append(this.lineOf(line));
    const targets = new Set(this.layout.stubs.map(({ target }) => target));
    for (const target of targets) lines.append(this.stubOf(target, this.layout.stubs.filter((stub) => stub.target === target)));
    this.svg.replaceChildren(this.markers(), grounds, lines, boxes, nodes);
    this.colour();
    if (!this.folding.known.has(this.chosen)) this.chosen = "";
    this.mark();
    this.find();
    if (old) this.keep(now, old);
  }

  // The texts of an item, and how much room they take.
  label(item) {
    const { folding } = this;
    const group = folding.layers.get(item.path)?.group;
    item.group = item.kind !== "operator" && group && group.indices.length > 1 ? group : null;
    const chip = item.group ? CHIP + 6 : 0;
    const widest = (size) => Math.max(...item.lines.map((line) => measure(line, size)));
    if (item.kind === "box") {
      item.lines = [`▾ ${folding.title(item.path)}`];
      item.titleWidth = widest(TITLE_SIZE) + chip + 2 * PAD;
      return;
    }
    item.lines = this.linesOf(item);
    item.width = widest(SIZE) + 22 + chip;
    item.height = 8 + LINE * item.lines.length;
  }

  linesOf(item) {
    const { folding } = this;
    if (item.kind === "input") return [nameOf(folding, item), item.given.tensor];
    const isClosed = item.kind === "closed";
    const params = costOf(folding, item, "params"), count = folding.count(item.path);
    const isBlock = isClosed && count > 1 && folding.layers.has(item.path);
    const { outputs } = isClosed ? folding.module(item.path) : folding.factsOf(item.orders[0]);
    const size = sizeOf(outputs[0] ?? "");
    const second = [size, params ? `${withPrefix(params, "")} params${isBlock ? " each" : ""}` : ""].filter(Boolean).join(" · ");
    const [order] = item.orders, { ranks } = this.data;
    const name = `${isClosed ? "▸ " : ""}${ranks ? `#${order} ` : ""}${nameOf(folding, item)}`;
    return [name, [second, ranks ? `rank ${ranks[order]}` : ""].filter(Boolean).join(" · ")].filter(Boolean);
  }

  shapesOf(item) {
    const isBox = item.kind === "box";
    const group = shape("g", { class: isBox ? "cluster" : "node", "data-name": item.name, "data-kind": item.kind });
    const frame = shape("rect", { x: item.x, y: item.y, width: item.width, height: item.height, rx: 6 });
    if (item.group) frame.setAttribute("class", "llmsim-layer");
    group.append(shape("title", {}, [item.path, ...item.lines].join("\n")), frame);
    const left = isBox ? item.x + PAD : item.x + (item.width - (item.group ? CHIP + 6 : 0)) / 2;
    item.lines.forEach((line, place) => {
      const y = item.y + (isBox ? 4 : 1) + LINE * (place + 1);
      group.append(shape("text", { x: left, y, "font-size": isBox ? TITLE_SIZE : SIZE, "text-anchor": isBox ? "start" : "middle" }, line));
    });
    if (item.kind !== "input" || item.given) {
      group.setAttribute("tabindex", "0");
      group.setAttribute("role", "button");
      group.setAttribute("aria-label", item.lines[0].replace(/^[▾▸] /, ""));
    }
    if (isBox || item.kind === "closed") group.setAttribute("aria-expanded", String(isBox));
    this.groups.set(item, group);
    return item.group ? [group, this.chipOf(item)] : [group];
  }

  // A button on a layer: draw the layers of its block one by one, or all as one block again.
  chipOf(item) {
    const total = item.group.indices.length;
    const isBlock = !this.folding.separate.has(item.path);
    const label = isBlock ? `draw these ${this.folding.count(item.path)} layers one by one` : `fold the ${total} identical layers`;
    const chip = shape("g", { class: "chip", role: "button", tabindex: "0", "aria-label": label, "data-chip": item.path });
    const x = item.x + item.width - CHIP - 4, y = item.y + 4;
    const text = isBlock ? `×${this.folding.count(item.path)} ⊞` : `×${total} ⊟`;
    chip.append(shape("title", {}, label), shape("rect", { x, y, width: CHIP, height: LINE + 2, rx: 7 }),
      shape("text", { x: x + CHIP / 2, y: y + 11, "font-size": 9, "text-anchor": "middle" }, text));
    return chip;
  }

  lineOf({ points, edges, hasHead, label, labelAt }) {
    const flow = flowOf(edges);
    const path = shape("path", { d: smooth(points), class: flow.replace(" ", "-") });
    if (hasHead) path.style.markerEnd = `url(#${this.own}-${flow.replace(" ", "-")})`;
    const texts = new Set(edges.flatMap((edge) => [...edge.texts]));
    const group = shape("g", { class: "edge" });
    group.append(shape("title", {}, `${[...texts].join("\n")}${flow === "tensor" ? "" : `\n${flow}`}`), path);
    if (label) group.append(shape("text", { x: labelAt[0], y: labelAt[1], "font-size": 8, "text-anchor": "middle" }, label));
    for (const edge of edges) (edge.groups ??= []).push(group);
    return group;
  }

  // The end of edges that are not drawn, at their target, with the names of their sources.
  stubOf(target, stubs) {
    const at = target.x + Math.min(12, target.width / 4);
    const points = [[at, target.y - 13], [at, target.y]];
    const line = this.lineOf({ points, edges: stubs.flatMap(({ edges }) => edges), hasHead: true });
    const names = stubs.map(({ source }) => source.lines[0].replace(/ · .*/, ""));
    line.append(shape("text", { x: at + 4, y: target.y - 6, "font-size": 7, class: "llmsim-stub" }, names.join(", ")));
    return line;
  }

  markers() {
    const made = shape("defs");
    for (const flow of FLOWS) {
      const name = flow.replace(" ", "-");
      const marker = shape("marker", { id: `${this.own}-${name}`, orient: "auto", markerUnits: "userSpaceOnUse",
        markerWidth: 7, markerHeight: 7, viewBox: "0 0 10 10", refX: 9, refY: 5, class: name });
      marker.append(shape("path", { d: "M0,1.5L10,5L0,8.5z" }));
      made.append(marker);
    }
    return made;
  }

  colour() {
    const filled = this.items.filter((item) => item.kind === "operator" || item.kind === "closed");
    if (this.colouring === "kind") {
      const flops = filled.map((item) => totalOf(this.folding, item, "flops") ?? 0), most = Math.max(...flops, 1);
      filled.forEach((item, place) => {
        const frame = this.groups.get(item).querySelector("rect");
        frame.style.fill = `var(--llmsim-${this.kindOf(item)})`;
        frame.style.strokeWidth = `${(1 + 3 * Math.sqrt(flops[place] / most)).toFixed(1)}`;
      });
      this.kindLegend(new Set(filled.map((item) => this.kindOf(item))));
      return;
    }
    if (this.colouring === "bottleneck") {
      const found = filled.map((item) => bottleneckOf(this.folding, item));
      filled.forEach((item, place) => {
        const frame = this.groups.get(item).querySelector("rect");
        frame.style.fill = found[place] ? `var(--llmsim-${BOTTLENECKS[found[place]]})` : "var(--llmsim-unknown)";
        frame.style.strokeWidth = "1";
      });
      const swatches = Object.keys(BOTTLENECKS).filter((name) => found.includes(name)).map((name) => swatch(name, BOTTLENECKS[name]));
      this.legend.replaceChildren(element("span", {}, "limits most of the time of a node:"), ...swatches);
      return;
    }
    const values = filled.map((item) => totalOf(this.folding, item, this.colouring)), most = Math.max(...values, 0);
    filled.forEach((item, place) => {
      const frame = this.groups.get(item).querySelector("rect"), value = values[place];
      // The square root keeps what is small but not nothing apart from nothing.
      const share = most && value !== null ? 100 * Math.sqrt(value / most) : 0;
      frame.style.fill = value === null ? "var(--llmsim-unknown)" : `color-mix(in srgb, var(--llmsim-hot) ${share.toFixed(0)}%, var(--llmsim-cold))`;
      frame.style.strokeWidth = "1";
    });
    this.scaleLegend(most);
  }

  // Attention if there is any, else the kind with most FLOPs.
  kindOf(item) {
    const flops = new Map();
    for (const order of item.orders) {
      const { kind, values } = this.folding.factsOf(order);
      flops.set(kind, (flops.get(kind) ?? 0) + (values.flops ?? 0));
    }
    return flops.has("attention") ? "attention" : [...flops].reduce((one, other) => (other[1] > one[1] ? other : one))[0];
  }

  kindLegend(kinds) {
    const flows = new Set(this.layout.lines.map(({ edges }) => flowOf(edges)));
    const lines = FLOWS.filter((flow) => flow !== "tensor" && flows.has(flow))
      .map((flow) => element("span", { class: `llmsim-line ${flow.replace(" ", "-")}` }, flow));
    this.legend.replaceChildren(...KINDS.filter((kind) => kinds.has(kind)).map((kind) => swatch(kind, kind)), ...lines,
      element("span", {}, "thick border: much of the FLOPs"));
  }

  scaleLegend(most) {
    const unit = UNITS[this.colouring];
    const label = { flops: "FLOPs of a node", bytes: "bytes that a node reads and writes",
      memory: "most activations in use while a node runs", time: "time of a node" }[this.colouring];
    const folded = this.items.some((item) => this.folding.count(item.path) > 1) && this.colouring !== "memory";
    this.legend.replaceChildren(element("span", {}, `${label}${folded ? ", in all the layers that it stands for" : ""}:`),
      element("span", {}, withPrefix(0, unit)), element("span", { class: "llmsim-scale" }),
      element("span", {}, withPrefix(most, unit)));
  }

  listen() {
    this.svg.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.zoom(event.deltaY > 0 ? ZOOM : 1 / ZOOM, event);
    }, { passive: false });
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      this.drag = { x: event.clientX, y: event.clientY, view: this.view.slice(), moved: false };
    });
    this.svg.addEventListener("pointermove", (event) => this.dragged(event));
    for (const name of ["pointerup", "pointerleave"]) {
      this.svg.addEventListener(name, (event) => {
        const clicked = this.drag && !this.drag.moved && name === "pointerup";
        this.drag = null;
        if (clicked) this.clicked(event.target);
      });
    }
    this.svg.addEventListener("focusin", ({ target }) => {
      const path = target.dataset.chip;
      const item = this.items.find((each) => (path === undefined ? this.groups.get(each) === target : each.path === path && each.group));
      // A click brings the focus along, and stays where it is.
      if (item && target.matches(":focus-visible")) this.reveal(item);
    });
    this.svg.addEventListener("keydown", (event) => {
      const [, , width, height] = this.view;
      const step = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
      if (step) this.moveTo(this.view[0] + step[0] * width / 8, this.view[1] + step[1] * height / 8);
      else if (event.key === "+") this.zoom(1 / ZOOM);
      else if (event.key === "-") this.zoom(ZOOM);
      else if (event.key === "0") this.fit();
      else if (event.key === "Escape") this.pick(null);
      else if (event.key === "Enter" || event.key === " ") this.clicked(event.target, true);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  clicked(target, byKey = false) {
    const chip = target.closest("[data-chip]");
    if (chip) {
      this.unfold(chip.dataset.chip);
      return;
    }
    const group = target.closest("g[data-name]");
    const item = group && this.items.find((each) => this.groups.get(each) === group);
    if (!item) return;
    // The inside of a box is for dragging; its title closes it.
    if (item.kind === "box" && !byKey && target.localName !== "text") return;
    if (item.kind === "operator" || item.kind === "input") this.pick(item);
    else this.toggle(item, byKey);
  }

  toggle(item, byKey) {
    this.folding.toggle(item.path);
    this.draw(item.path);
    const now = this.items.find((each) => each.path === item.path && (each.kind === "box" || each.kind === "closed"));
    this.pick(now ?? null);
    if (byKey && now) this.groups.get(now).focus();
  }

  // Draw a block's layers one by one, or the layers as a block.
  unfold(path) {
    const { group } = this.folding.layers.get(path);
    if (this.folding.separate.has(path)) this.folding.fold(group);
    else this.folding.expand(group);
    const isSeparate = this.folding.separate.has(path);
    const now = isSeparate ? path : this.folding.layerPath(group, group.indices[0]);
    this.pick(null);
    this.draw(path, now);
    this.status.textContent = `${group.indices.length} layers ${isSeparate ? "one by one" : "as one"}`;
    this.svg.querySelector(`[data-chip="${CSS.escape(now)}"]`)?.focus({ preventScroll: true });
  }

  // Select an item and tell the page; none closes the details.
  pick(item) {
    this.chosen = item ? item.id : "";
    this.mark();
    if (!item) {
      this.details.hide();
      return;
    }
    this.details.show(item, this.edges);
    this.reveal(item);
    if (item.kind === "operator" || item.kind === "closed") {
      // The node of a block shows the operators of several layers: one of them may be meant already.
      if (!this.asked || this.folding.item(Number(this.asked.slice(1))) !== item) this.asked = item.name;
      this.box.dispatchEvent(new CustomEvent("llmsim-node", { bubbles: true, detail: this.asked }));
    }
  }

  // Mark the node of an operator by its name, such as `n5`, or none.
  choose(name) {
    const order = /^n\d+$/.test(name) ? Number(name.slice(1)) : null;
    this.asked = order === null ? "" : name;
    const item = order === null ? this.folding.known.get(name) : this.folding.item(order);
    this.chosen = item ? item.id : "";
    this.mark();
    if (!item || item.kind === "root") this.details.hide();
    else if (!this.details.element.hidden) this.details.show(item, this.edges);
  }

  mark() {
    for (const [item, group] of this.groups) group.classList.toggle("chosen", item.id === this.chosen);
    for (const edge of this.edges) {
      const isNear = this.chosen && [edge.source, edge.target].some((item) => item.id === this.chosen);
      for (const group of edge.groups ?? []) group.classList.toggle("near", Boolean(isNear));
    }
  }

  dragged(event) {
    if (!this.drag) return;
    const x = (event.clientX - this.drag.x) / this.scale, y = (event.clientY - this.drag.y) / this.scale;
    if (Math.abs(event.clientX - this.drag.x) + Math.abs(event.clientY - this.drag.y) > 4) this.drag.moved = true;
    if (this.drag.moved) this.moveTo(this.drag.view[0] - x, this.drag.view[1] - y);
  }

  // Where the middle of an item's top lies on the screen, from the corner of the drawing; or null.
  anchorOf(path) {
    const item = this.items?.find((each) => each.path === path && each.kind !== "operator");
    return item && this.view ? [(item.x + item.width / 2 - this.view[0]) * this.scale, (item.y - this.view[1]) * this.scale] : null;
  }

  keep(path, [across, along]) {
    const item = this.items.find((each) => each.path === path && each.kind !== "operator");
    this.resize();
    if (item) this.moveTo(item.x + item.width / 2 - across / this.scale, item.y - along / this.scale);
  }

  get room() {
    return this.svg.parentElement.clientWidth || 800;
  }

  // A picture that is much longer than the screen is seen through a window, and so is one of
  // `data-window`, a share of the screen.
  resize() {
    const share = Number(this.box.dataset.window), tallest = (share || 0.85) * window.innerHeight;
    const height = this.root.height * this.scale;
    this.height = height > (share ? 1 : 3) * tallest ? tallest : Math.max(height, 60);
    this.svg.style.height = `${this.height}px`;
  }

  // Text at its own size, unless that is wider than the page.
  natural() {
    this.scale = Math.min(POINT, this.room / this.root.width);
    this.resize();
    this.moveTo((this.root.width - this.room / this.scale) / 2, 0);
  }

  fit() {
    const tallest = 0.85 * window.innerHeight;
    this.scale = Math.min(this.room / this.root.width, tallest / this.root.height);
    this.resize();
    this.moveTo((this.root.width - this.room / this.scale) / 2, 0);
  }

  moveTo(left, top) {
    this.view = [left, top, this.room / this.scale, this.height / this.scale];
    this.svg.setAttribute("viewBox", this.view.map((number) => number.toFixed(1)).join(" "));
  }

  zoom(factor, event) {
    const frame = this.svg.getBoundingClientRect();
    const across = event ? (event.clientX - frame.x) / frame.width : 0.5;
    const along = event ? (event.clientY - frame.y) / frame.height : 0.5;
    const [left, top, width, height] = this.view;
    this.scale /= factor;
    this.moveTo(left + width * (1 - factor) * across, top + height * (1 - factor) * along);
  }

  find() {
    const wanted = this.search.value.trim().toLowerCase();
    const says = (order) => `${this.folding.pathOf(order)} ${this.folding.factsOf(order).op}`.toLowerCase();
    const nodes = this.items.filter((item) => item.kind === "operator" || item.kind === "closed");
    const hidden = nodes.filter((item) => item.kind === "closed").flatMap((item) => item.orders);
    this.hits = wanted ? nodes.filter((item) => (item.kind === "closed"
      ? this.folding.title(item.path).toLowerCase().includes(wanted) || item.path.toLowerCase().includes(wanted)
      : says(item.orders[0]).includes(wanted))) : [];
    const folded = wanted ? hidden.filter((order) => says(order).includes(wanted)).length : 0;
    for (const item of nodes) this.groups.get(item).style.opacity = this.hits.length && !this.hits.includes(item) ? 0.3 : 1;
    const beside = folded ? `, ${folded} more in closed boxes` : "";
    this.status.textContent = wanted ? `${this.hits.length} of ${nodes.length} nodes${beside}` : "";
    this.place = -1;
  }

  next() {
    if (!this.hits.length) return;
    this.place = (this.place + 1) % this.hits.length;
    this.pick(this.hits[this.place]);
    this.groups.get(this.hits[this.place]).scrollIntoView({ block: "nearest" });
    this.status.textContent = `${this.place + 1} of ${this.hits.length}`;
  }

  // Bring an item, or the chosen node, into sight, out of the details' way, too; of a box its title.
  reveal(target) {
    const item = typeof target === "string" ? this.folding.known.get(this.chosen) : target;
    if (!item || item.kind === "root") return;
    const [left, top, width, height] = this.view;
    const tall = item.kind === "box" ? LINE + PAD : item.height;
    const covered = this.details.element.hidden ? 0 : this.details.element.offsetWidth / this.scale;
    const x = item.x + item.width / 2, y = item.y + tall / 2;
    const isAcross = item.kind === "box" || (item.x >= left && item.x + item.width <= left + width - covered);
    const isAlong = item.y >= top && item.y + tall <= top + height;
    if (isAcross && isAlong) return;
    this.moveTo(isAcross ? left : x - (width - covered) / 2, isAlong ? top : y - height / 2);
  }
}

const makeInteractive = (root) => {
  for (const box of root.querySelectorAll(".llmsim-graph[data-graph]:not([data-live])")) {
    const before = [...box.childNodes];
    box.dataset.live = "yes";
    try {
      box.drawing = new Drawing(box);
    } catch (error) {
      delete box.dataset.live;
      box.replaceChildren(...before);
      console.warn("llmsim: the picture stays as it is", error);
    }
  }
};
