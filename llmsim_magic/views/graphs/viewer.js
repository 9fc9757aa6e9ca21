// `makeInteractive(root)` lets the user pan, zoom, search and fold the graphs inside it.
// Where scripts do not run, the graphs stay images.
const LINE = 13, GAP = 6, ZOOM = 1.25;

const element = (name, attributes = {}, text = "") => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
};

const drawingOf = (image) => {
  const bytes = Uint8Array.from(atob(image.src.split(",")[1]), (c) => c.charCodeAt(0));
  const text = new TextDecoder().decode(bytes);
  const parsed = new DOMParser().parseFromString(text, "image/svg+xml");
  const scope = parsed.documentElement.getAttribute("class");
  const drawing = document.importNode(parsed.documentElement, true);
  // Names within the picture become this one's own: a hidden twin would lend it no arrow heads.
  const own = `${scope}-${Math.random().toString(36).slice(2)}`;
  drawing.setAttribute("class", own);
  for (const part of drawing.querySelectorAll("style, marker")) {
    if (part.id) part.id = part.id.replace(scope, own);
    else part.textContent = part.textContent.replaceAll(scope, own);
  }
  return drawing;
};

// What a fold moves: every y of a shape, and where each lies when nothing is folded.
class Shape {
  constructor(node, rigid) {
    this.node = node;
    this.rigid = rigid;
    this.attribute = { path: "d", polygon: "points", polyline: "points", text: "y", ellipse: "cy" }[node.localName];
    this.parts = (node.getAttribute(this.attribute) || "").split(/([-+]?\d*\.?\d+(?:e[-+]?\d+)?)/i);
  }
  // In `d` and `points` every second number is a y; `y` and `cy` are one.
  move(down) {
    const single = this.attribute === "y" || this.attribute === "cy";
    const isY = (place) => place % 2 === 1 && (single || ((place - 1) / 2) % 2 === 1);
    const first = this.parts.find((_, place) => isY(place));
    const shift = down(+first) - first;
    const moved = this.parts.map((part, place) =>
      isY(place) ? (this.rigid ? +part + shift : down(+part)).toFixed(2) : part);
    this.node.setAttribute(this.attribute, moved.join(""));
  }
}

class Drawing {
  constructor(box) {
    this.box = box;
    this.svg = drawingOf(box.querySelector("img"));
    this.full = this.svg.getAttribute("viewBox").split(" ").map(Number);
    this.folded = new Set();
    this.hits = [];
    this.status = element("span", { role: "status" });
    this.svg.setAttribute("tabindex", "0");
    for (const key of ["width", "height"]) this.svg.removeAttribute(key);
    this.graph = this.svg.querySelector("g.graph");
    box.replaceChildren(this.toolbar(), this.svg);
    this.read();
    this.listen();
    this.fold();
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
    const search = element("input", { type: "search", placeholder: "find a node", "aria-label": "find a node" });
    this.search = search;
    search.addEventListener("input", () => this.find(search.value));
    search.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter") this.next();
    });
    bar.append(search, this.status);
    return bar;
  }

  read() {
    this.shapes = [];
    this.parts = [...this.graph.querySelectorAll(":scope > g")].map((group) => {
      const frame = group.getBBox();
      const name = group.dataset.name || "";
      const kind = group.getAttribute("class");
      for (const node of group.querySelectorAll("path, polygon, polyline, text, ellipse")) {
        this.shapes.push(new Shape(node, kind === "node"));
      }
      return { group, kind, name, top: frame.y, bottom: frame.y + frame.height, left: frame.x, right: frame.x + frame.width };
    });
    this.named = new Map(this.parts.map((part) => [part.name, part]));
    for (const part of this.clusters()) {
      part.group.setAttribute("tabindex", "0");
      part.group.setAttribute("role", "button");
      part.label = part.group.querySelector("text");
      part.header = GAP + LINE * (1 + part.group.querySelectorAll("text").length);
      part.words = part.label.textContent.trim();
      part.group.setAttribute("aria-label", part.words);
    }
  }

  clusters() {
    return this.parts.filter((part) => part.kind === "cluster" && part.name !== "cluster_legend");
  }

  within(part, cluster) {
    return part !== cluster && part.kind !== "edge" && part.top >= cluster.top && part.bottom <= cluster.bottom
      && part.left >= cluster.left && part.right <= cluster.right;
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
        if (clicked) this.clicked(event.target.closest("g[data-name]"));
      });
    }
    this.svg.addEventListener("keydown", (event) => {
      const [, , width, height] = this.view;
      const step = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
      if (step) this.show([this.view[0] + step[0] * width / 8, this.view[1] + step[1] * height / 8, width, height]);
      else if (event.key === "+") this.zoom(1 / ZOOM);
      else if (event.key === "-") this.zoom(ZOOM);
      else if (event.key === "0") this.fit();
      else if (event.key === "Enter" || event.key === " ") this.clicked(event.target.closest("g[data-name]"));
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  clicked(group) {
    const part = group && this.named.get(group.dataset.name);
    if (!part) return;
    if (part.kind === "node") {
      this.choose(part.name);
      this.box.dispatchEvent(new CustomEvent("llmsim-node", { bubbles: true, detail: part.name }));
    } else if (part.label) {
      if (!this.folded.delete(part.name)) this.folded.add(part.name);
      this.fold();
    }
  }

  dragged(event) {
    if (!this.drag) return;
    const scale = this.view[2] / this.svg.clientWidth;
    const x = (event.clientX - this.drag.x) * scale, y = (event.clientY - this.drag.y) * scale;
    if (Math.abs(x) + Math.abs(y) > 4) this.drag.moved = true;
    const [left, top, width, height] = this.drag.view;
    if (this.drag.moved) this.show([left - x, top - y, width, height]);
  }

  // A folded box keeps its title. What it held is hidden, and the height that only this took goes.
  fold() {
    const closed = this.clusters().filter((part) => this.folded.has(part.name));
    const hidden = new Set(this.parts.filter((part) => closed.some((cluster) => this.within(part, cluster))));
    const homes = (name) => closed.filter((cluster) => this.within(this.named.get(name), cluster));
    for (const edge of this.parts.filter((part) => part.kind === "edge")) {
      const [source, target] = edge.name.split(" ");
      if (!this.named.has(source) || !this.named.has(target)) continue;
      const there = homes(target);
      if (homes(source).some((cluster) => there.includes(cluster))) hidden.add(edge);
    }
    const kept = this.parts.filter((part) => part.kind === "node" && !hidden.has(part));
    let gaps = closed.filter((part) => !hidden.has(part)).map((part) => [part.top + part.header, part.bottom - GAP]);
    for (const node of kept) {
      gaps = gaps.flatMap(([from, to]) => node.bottom + GAP <= from || node.top - GAP >= to ? [[from, to]]
        : [[from, node.top - GAP], [node.bottom + GAP, to]].filter(([a, b]) => b > a));
    }
    gaps.sort((one, other) => one[0] - other[0]);
    const merged = [];
    for (const [from, to] of gaps) {
      const last = merged[merged.length - 1];
      if (last && from <= last[1]) last[1] = Math.max(last[1], to);
      else merged.push([from, to]);
    }
    const gone = merged.reduce((sum, [from, to]) => sum + to - from, 0);
    const down = (y) => y - merged.reduce((sum, [from, to]) => sum + Math.max(0, Math.min(y, to) - from), 0);
    for (const shape of this.shapes) shape.move(down);
    for (const part of this.parts) part.group.style.display = hidden.has(part) ? "none" : "";
    for (const part of this.clusters()) {
      const isClosed = this.folded.has(part.name);
      part.group.setAttribute("aria-expanded", String(!isClosed));
      part.label.textContent = `${isClosed ? "▸" : "▾"} ${part.words}`;
      if (isClosed) this.graph.append(part.group);
      else this.graph.insertBefore(part.group, this.parts.find((other) => other.kind === "node").group);
    }
    this.whole = [this.full[0], this.full[1], this.full[2], this.full[3] - gone];
    this.find(this.search.value);
    this.natural();
  }

  // Text at its own size, unless that is wider than the page. A picture that is much longer than
  // the screen is seen through a window, and so is one of `data-window`, a share of the screen.
  natural() {
    const share = Number(this.box.dataset.window), tallest = (share || 0.85) * window.innerHeight;
    const points = 4 / 3, room = this.box.clientWidth || 800;
    const [left, top, width, height] = this.whole;
    const scale = Math.min(points, room / width), isLong = height * scale > (share ? 1 : 3) * tallest;
    this.svg.style.width = `${width * scale}px`;
    this.svg.style.height = `${isLong ? tallest : height * scale}px`;
    this.show([left, top, width, isLong ? tallest / scale : height]);
  }

  fit() {
    const tallest = 0.85 * window.innerHeight, room = this.box.clientWidth || 800;
    const scale = Math.min(room / this.whole[2], tallest / this.whole[3]);
    this.svg.style.width = `${room}px`;
    this.svg.style.height = `${this.whole[3] * scale}px`;
    this.show(this.whole);
  }

  show(view) {
    this.view = view;
    this.svg.setAttribute("viewBox", view.map((number) => number.toFixed(1)).join(" "));
  }

  zoom(factor, event) {
    const frame = this.svg.getBoundingClientRect();
    const across = event ? (event.clientX - frame.x) / frame.width : 0.5;
    const along = event ? (event.clientY - frame.y) / frame.height : 0.5;
    const [left, top, width, height] = this.view;
    this.show([left + width * (1 - factor) * across, top + height * (1 - factor) * along, width * factor, height * factor]);
  }

  find(words) {
    const wanted = words.trim().toLowerCase();
    const nodes = this.parts.filter((part) => /^n\d+$/.test(part.name));
    const says = ({ group }) => [...group.querySelectorAll("title, text")]
      .map((part) => part.textContent.split("\n")[0]).join(" ").toLowerCase();
    const all = wanted ? nodes.filter((part) => says(part).includes(wanted)) : [];
    this.hits = all.filter((part) => !part.group.style.display);
    const folded = all.length - this.hits.length;
    for (const part of nodes) part.group.style.opacity = this.hits.length && !this.hits.includes(part) ? 0.2 : 1;
    const beside = folded ? `, ${folded} more in folded boxes` : "";
    this.status.textContent = wanted ? `${this.hits.length} of ${nodes.length} nodes${beside}` : "";
    this.place = -1;
  }

  // Mark a node by its name, or none.
  choose(name) {
    for (const part of this.parts) part.group.classList.toggle("chosen", part.kind === "node" && part.name === name);
  }

  next() {
    if (!this.hits.length) return;
    this.place = (this.place + 1) % this.hits.length;
    const hit = this.hits[this.place];
    this.reveal(hit.name);
    this.clicked(hit.group);
    hit.group.scrollIntoView({ block: "nearest" });
    this.status.textContent = `${this.place + 1} of ${this.hits.length}`;
  }

  // Bring a node that is out of sight to the middle.
  reveal(name) {
    const part = this.named.get(name);
    if (!part || part.group.style.display) return;
    const frame = part.group.getBBox();
    const middle = this.graph.getCTM().inverse().multiply(this.svg.getCTM());
    const [left, top, width, height] = this.view;
    const x = frame.x + frame.width / 2 - middle.e, y = frame.y + frame.height / 2 - middle.f;
    const isSeen = x > left && x < left + width && y > top && y < top + height;
    const isWide = width >= this.whole[2];
    if (!isSeen) this.show([isWide ? left : x - width / 2, y - height / 2, width, height]);
  }
}

const makeInteractive = (root) => {
  for (const box of root.querySelectorAll(".llmsim-graph:not([data-live])")) {
    const image = box.querySelector("img");
    box.dataset.live = "yes";
    try {
      box.drawing = new Drawing(box);
    } catch (error) {
      box.replaceChildren(image);
      console.warn("llmsim: the picture stays as it is", error);
    }
  }
};
