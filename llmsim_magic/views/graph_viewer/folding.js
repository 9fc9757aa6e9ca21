// Which boxes are open and which layers stand for others; from that, the nodes and edges to draw.

const lastPart = (path) => /(?:^|\.)([^.]*\.\d+|[^.]*)$/.exec(path)[1];
const parentOf = (path) => path.slice(0, Math.max(0, path.lastIndexOf(".")));

// `0-2, 5`: indices as ascending ranges; more than four are shortened.
const spans = (indices) => {
  const found = [];
  for (const index of [...indices].sort((a, b) => a - b)) {
    const last = found[found.length - 1];
    if (last && index === last[1] + 1) last[1] = index;
    else found.push([index, index]);
  }
  const texts = found.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`));
  return (texts.length <= 4 ? texts : [...texts.slice(0, 2), "…", texts[texts.length - 1]]).join(", ");
};

class Folding {
  constructor(data) {
    this.data = data;
    this.facts = new Map(data.nodes.map((node) => [node.order, node]));
    this.lists = new Set(data.lists);
    this.separate = new Set(data.separate);
    this.firstClosed = new Set(data.closed);
    this.toggled = new Map();
    this.places = new Map();
    this.layers = new Map();
    for (const group of data.groups) {
      group.indices.forEach((index, row) => {
        this.layers.set(this.layerPath(group, index), { group, index });
        group.members[row].forEach((order, number) => this.places.set(order, { group, index, number }));
      });
    }
    if (!data.areLayersOpen) for (const path of this.separate) this.toggled.set(path, true);
    this.orders = [...new Set([...this.facts.keys(), ...this.places.keys()])].sort((a, b) => a - b);
  }

  layerPath(group, index) {
    return group.stack ? `${group.stack}.${index}` : `${index}`;
  }

  // The layers of a group that one block stands for: those that are not drawn by themselves.
  block(group) {
    return group.indices.filter((index) => !this.separate.has(this.layerPath(group, index)));
  }

  expand(group) {
    for (const path of this.layersWith(group)) {
      this.separate.add(path);
      this.toggled.set(path, true);
    }
  }

  fold(group) {
    for (const path of this.layersWith(group)) {
      this.separate.delete(path);
      this.toggled.delete(path);
    }
  }

  // The layers of a group and of those that take turns with it: only together are they a chain.
  layersWith(group) {
    const ends = ({ indices }) => [Math.min(...indices), Math.max(...indices)];
    const [first, last] = ends(group);
    const areMixed = (other) => ends(other)[0] <= last && ends(other)[1] >= first;
    return this.data.groups.filter((other) => other.stack === group.stack && areMixed(other))
      .flatMap((other) => other.indices.map((index) => this.layerPath(other, index)));
  }

  toggle(path) {
    this.toggled.set(path, !this.isClosed(path));
  }

  // What is inside a box that is closed at first opens one by one, too.
  isClosed(path) {
    return this.toggled.get(path) ?? this.isFirstClosed(this.recordedPath(path));
  }

  isFirstClosed(recorded) {
    return this.firstClosed.has(recorded) || (recorded !== "" && this.isFirstClosed(parentOf(recorded)));
  }

  // The path of the same module in the first layer of its group.
  recordedPath(path) {
    const layer = this.layerAround(path);
    if (!layer) return path;
    const first = this.layerPath(layer.group, layer.group.indices[0]);
    return first + path.slice(this.layerPath(layer.group, layer.index).length);
  }

  layerAround(path) {
    for (let outer = path; ; outer = parentOf(outer)) {
      if (this.layers.has(outer)) return this.layers.get(outer);
      if (!outer) return null;
    }
  }

  // The order of the operator that is drawn for this one: its like in the block of its layer.
  drawnOrder(order) {
    const place = this.places.get(order);
    if (!place || this.separate.has(this.layerPath(place.group, place.index))) return order;
    const first = this.block(place.group)[0];
    return place.group.members[place.group.indices.indexOf(first)][place.number];
  }

  factsOf(order) {
    const place = this.places.get(order);
    return this.facts.get(place ? place.group.members[0][place.number] : order);
  }

  inOwnLayer(text, order) {
    const place = this.places.get(order);
    if (!place) return text;
    const first = this.layerPath(place.group, place.group.indices[0]);
    const own = this.layerPath(place.group, place.index);
    return text === first || text.startsWith(`${first}.`) ? own + text.slice(first.length) : text;
  }

  pathOf(order) {
    return this.inOwnLayer(this.factsOf(order).path, order);
  }

  // The modules around an operator, outermost first; a list of modules is none.
  boxesAround(order) {
    const facts = this.factsOf(order);
    const path = this.pathOf(order);
    let inner = facts.isModule ? parentOf(path) : path;
    if (this.lists.has(this.recordedPath(inner))) inner = parentOf(inner);
    const parts = inner ? inner.split(".") : [];
    return parts.map((_, place) => parts.slice(0, place + 1).join("."))
      .filter((box, place) => place + 1 === parts.length || !/^\d+$/.test(parts[place + 1]));
  }

  // In execution order, only layers and what was closed at first have a box.
  isBox(path) {
    return !this.data.ranks || this.layers.has(path) || this.isFirstClosed(this.recordedPath(path));
  }

  title(path) {
    const layer = this.layers.get(path);
    const { type } = this.module(path);
    let name = lastPart(path);
    if (layer && !this.separate.has(path)) {
      const indices = this.block(layer.group);
      if (indices.length > 1) name = `${name.slice(0, name.length - `${layer.index}`.length)}${spans(indices)} ×${indices.length}`;
    }
    return `${name} · ${type}${layer && layer.group.feature ? ` · ${layer.group.feature}` : ""}`;
  }

  module(path) {
    return this.data.modules[this.recordedPath(path)] ?? { type: "", inputs: [], outputs: [] };
  }

  // The number of layers that an item inside this path stands for.
  count(path) {
    const layer = this.layerAround(path);
    return !layer || this.separate.has(this.layerPath(layer.group, layer.index)) ? 1 : this.block(layer.group).length;
  }

  // The tree of what is drawn: boxes with children, closed modules, operators and inputs.
  items() {
    const root = { id: "", kind: "root", path: "", children: [], around: [] };
    const known = new Map([["", root]]);
    this.itemOf = new Map();
    const add = (item, parent) => {
      item.parent = parent;
      item.around = [...parent.around, parent];
      parent.children.push(item);
      known.set(item.id, item);
      return item;
    };
    for (const order of this.orders) {
      if (this.drawnOrder(order) !== order) continue;
      let parent = root, closed = null;
      for (const path of this.boxesAround(order)) {
        if (this.isClosed(path)) {
          const id = `closed ${path}`;
          closed = known.get(id) ?? add({ id, name: `n${order}`, kind: "closed", path, orders: [] }, parent);
          break;
        }
        if (!this.isBox(path)) continue;
        const id = `box ${path}`;
        parent = known.get(id) ?? add({ id, name: id, kind: "box", path, children: [], orders: [] }, parent);
      }
      const item = closed ?? add({ id: `n${order}`, name: `n${order}`, kind: "operator", path: this.pathOf(order), orders: [] }, parent);
      for (const holder of [item, ...item.around]) holder.orders?.push(order);
      this.itemOf.set(order, item);
    }
    this.addInputs(root, add);
    this.known = known;
    return root;
  }

  addInputs(root, add) {
    this.inputs = [];
    this.data.inputs.forEach((given, number) => {
      const readers = [...new Set(given.readers.filter((order) => this.drawnOrder(order) === order)
        .map((order) => this.itemOf.get(order)))];
      // A part of the cache belongs to the layer that reads it, and is hidden with it.
      if (!readers.length || (given.isCache && readers[0].kind === "closed")) return;
      const parent = given.isCache ? readers[0].parent : root;
      const name = `given${number}`;
      const item = add({ id: name, name, kind: "input", path: given.name, given }, parent);
      this.inputs.push([item, readers]);
    });
  }

  item(order) {
    return this.itemOf.get(this.drawnOrder(order));
  }

  // Edges between items, each once; `isNext` leads to a later layer that is drawn as the same block.
  edges() {
    const found = new Map();
    const add = (source, target, kind, text, block, isBack = false) => {
      const key = `${source.id}\n${target.id}\n${block ? "next" : ""}`;
      if (!found.has(key)) found.set(key, { source, target, kinds: new Set(), texts: new Set(), block, isBack });
      found.get(key).kinds.add(kind);
      found.get(key).texts.add(text);
    };
    for (const [source, target, kind, text] of this.data.edges) {
      const from = this.item(source), to = this.item(target);
      if (!from || !to) continue;
      const block = this.blockBetween(source, target);
      if (from === to && !block) continue;
      const isBack = !block && this.drawnOrder(source) >= this.drawnOrder(target);
      add(from, to, block || isBack ? "next layer" : kind, this.data.tensors[text], block, isBack);
    }
    for (const [item, readers] of this.inputs) {
      for (const reader of readers) add(item, reader, item.given.isCache ? "cache" : "tensor", item.given.tensor, null);
    }
    return [...found.values()];
  }

  // The path of the block that holds two operators of different layers, or null.
  blockBetween(source, target) {
    const from = this.places.get(source), to = this.places.get(target);
    if (!from || !to || from.group !== to.group || from.index === to.index) return null;
    const indices = this.block(from.group);
    return indices.includes(from.index) && indices.includes(to.index) ? this.layerPath(from.group, indices[0]) : null;
  }
}
