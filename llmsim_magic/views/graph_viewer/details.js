// The side panel with all that is known of a node, and the numbers as people say them.

const UNITS = { flops: "FLOPs", bytes: "B", read: "B", written: "B", memory: "B", params: "", time: "s" };

const withPrefix = (number, unit) => {
  if (!number) return unit ? `0 ${unit}` : "0";
  const isSmall = unit === "s";
  const prefixes = isSmall ? ["n", "µ", "m", ""] : unit ? ["", "k", "M", "G", "T", "P"] : ["", "k", "M", "B", "T"];
  let place = isSmall ? 3 : 0, value = number;
  while (isSmall && value < 1 && place > 0) [value, place] = [value * 1000, place - 1];
  while (!isSmall && value >= 999.5 && place < prefixes.length - 1) [value, place] = [value / 1000, place + 1];
  const isExact = Number.isInteger(number) && Math.abs(number) < 1000;
  return `${isExact ? number : value.toPrecision(3)} ${prefixes[place]}${unit}`.trim();
};

const exact = (number, unit) => `${Number.isInteger(number) ? number.toLocaleString("en-US") : number} ${unit}`.trim();

const element = (name, attributes = {}, text = "") => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
};

// The sum over the operators of an item, of one layer; the highest for memory, null if unknown.
const costOf = (folding, item, quantity) => {
  const values = (item.orders ?? []).map((order) => folding.factsOf(order).values[quantity]);
  if (!values.length || values.some((value) => value === null)) return null;
  return quantity === "memory" ? Math.max(...values) : values.reduce((sum, value) => sum + value, 0);
};

// The same for all the layers that the item stands for.
const totalOf = (folding, item, quantity) => {
  const value = costOf(folding, item, quantity);
  return value === null || quantity === "memory" ? value : value * folding.count(item.path);
};

// What limits most of the time of an item; null without a device.
const bottleneckOf = (folding, item) => {
  const seconds = new Map();
  for (const order of item.orders ?? []) {
    const { bottleneck, values } = folding.factsOf(order);
    if (bottleneck) seconds.set(bottleneck, (seconds.get(bottleneck) ?? 0) + values.time);
  }
  return [...seconds].reduce((one, other) => (one && one[1] >= other[1] ? one : other), null)?.[0] ?? null;
};

class Details {
  constructor(folding, select, close) {
    this.folding = folding;
    this.select = select;
    this.element = element("aside", { class: "llmsim-details", "aria-label": "details of the node", tabindex: "-1" });
    this.element.hidden = true;
    this.close = close;
    this.element.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
      event.stopPropagation();
    });
  }

  hide() {
    this.element.hidden = true;
  }

  show(item, edges) {
    const heading = element("div", { class: "llmsim-details-head" });
    const closer = element("button", { type: "button", "aria-label": "close the details" }, "×");
    closer.addEventListener("click", this.close);
    heading.append(element("strong", {}, nameOf(this.folding, item)), closer);
    this.list = element("dl");
    if (item.kind === "input") this.describeInput(item);
    else this.describe(item);
    const isInside = (end) => end === item || end.around.includes(item);
    this.neighbours("reads", edges.filter(({ source, target, block }) => isInside(target) && (block !== null || !isInside(source))), "source");
    this.neighbours("feeds", edges.filter(({ source, target, block }) => isInside(source) && (block !== null || !isInside(target))), "target");
    this.element.replaceChildren(heading, this.list);
    this.element.scrollTop = 0;
    this.element.hidden = false;
  }

  describeInput(item) {
    this.row("what", item.given.isCache ? "cache from before the pass" : "input of the pass");
    this.row("tensor", item.given.tensor);
  }

  describe(item) {
    const { folding } = this, count = folding.count(item.path);
    this.row("path", item.path);
    if (item.kind === "operator") this.describeOperator(item);
    else {
      const { type, inputs, outputs } = folding.module(item.path);
      this.row("type", type);
      this.row("inputs", inputs);
      this.row("outputs", outputs);
      this.row("operators", `${item.orders.length}${count > 1 ? " in each layer" : ""}`);
    }
    const layer = folding.layerAround(item.path);
    if (count > 1) this.row("layers", `${spans(folding.block(layer.group))}: ${count} alike`);
    const rows = [["params", "parameters"], ["flops", "FLOPs"], ["read", "bytes read"], ["written", "bytes written"],
      ["memory", "activations while it runs"], ["time", "time"]];
    for (const [quantity, label] of rows) this.quantity(item, quantity, label, count);
    this.row("bottleneck", bottleneckOf(folding, item) ?? "");
  }

  describeOperator(item) {
    const [order] = item.orders, facts = this.folding.factsOf(order);
    this.row("type", facts.op);
    this.row("kind of work", facts.kind);
    this.row("operator", `${order}`);
    this.row("inputs", facts.inputs);
    this.row("outputs", facts.outputs);
    this.row("weights", facts.weights.map((name) => this.folding.inOwnLayer(name, order)));
    this.row("source", facts.source ?? "");
  }

  quantity(item, quantity, label, count) {
    const value = costOf(this.folding, item, quantity), unit = UNITS[quantity];
    const isMissing = value === null && quantity === "time" && !this.folding.data.nodes.some((node) => node.values.time !== null);
    if (isMissing) return;
    if (value === null) {
      this.row(label, "unknown");
      return;
    }
    const isSummed = count > 1 && quantity !== "memory" && value > 0;
    const text = withPrefix(value, unit) + (isSummed ? ` each, ${withPrefix(value * count, unit)} in ${count} layers` : "");
    this.row(label, text, exact(value, unit));
  }

  row(label, value, title = "") {
    const lines = Array.isArray(value) ? value : [value];
    if (!lines.length || !lines[0]) return;
    this.list.append(element("dt", {}, label));
    for (const line of lines) this.list.append(element("dd", title ? { title } : {}, line));
  }

  neighbours(label, edges, end) {
    if (!edges.length) return;
    this.list.append(element("dt", {}, label));
    const found = new Map();
    for (const edge of edges) {
      const key = `${edge[end].id}\n${edge.block ?? ""}`;
      found.set(key, { ...edge, kinds: new Set([...(found.get(key)?.kinds ?? []), ...edge.kinds]),
        texts: new Set([...(found.get(key)?.texts ?? []), ...edge.texts]) });
    }
    for (const edge of found.values()) {
      const other = edge[end], kinds = [...edge.kinds].filter((kind) => kind !== "tensor").join(", ");
      const where = edge.block !== null ? (end === "source" ? "of the previous layer" : "of the next layer") : kinds;
      const name = other.kind === "operator" ? `${other.path} · ${this.folding.factsOf(other.orders[0]).op}` : other.path;
      const cell = element("dd");
      const button = element("button", { type: "button", title: [...edge.texts].join(", ") }, name);
      button.addEventListener("click", () => this.select(other));
      cell.append(button, ` ${[...edge.texts].slice(0, 2).join(", ")}${where ? ` · ${where}` : ""}`);
      this.list.append(cell);
    }
  }
}

// `q_proj · Linear`, `mul`, or the title of a module.
const nameOf = (folding, item) => {
  if (item.kind === "input") return item.path.split(".").slice(-3).join(".");
  if (item.kind !== "operator") return folding.title(item.path);
  const facts = folding.factsOf(item.orders[0]);
  return facts.isModule ? `${lastPart(item.path) || folding.data.model} · ${facts.op}` : facts.op;
};
