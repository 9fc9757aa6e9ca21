// Places items with dagre, box by box from the inside out: a box is a node of the box around it.
const FONT = "Helvetica, Arial, 'Liberation Sans', 'Nimbus Sans', sans-serif";
const SIZE = 10, TITLE_SIZE = 11, LINE = 13, PAD = 8, RANK_GAP = 22, NODE_GAP = 14, CHIP = 44, LOOP = 20;
const MAX_EDGES = 8; // of a node on one side; more would bend the whole layout, so they become stubs

const measure = (() => {
  const pen = document.createElement("canvas").getContext("2d");
  return (text, size) => {
    pen.font = `${size}px ${FONT}`;
    return pen.measureText(text).width;
  };
})();

// An edge that crosses the border of a box goes through a port there: `in` above, `out` below.
const IN = { id: "port in" }, OUT = { id: "port out" };

class Layout {
  constructor(root, edges, hasShapes) {
    this.hasShapes = hasShapes;
    this.lines = [];
    this.stubs = [];
    this.loops = new Map();
    for (const edge of edges) this.distribute(edge);
    this.size(root);
    this.place(root, 0, 0);
    this.connect(root);
    this.connectLoops();
  }

  // Split an edge into one piece in each box that it runs through.
  distribute(edge) {
    const from = [...edge.source.around, edge.source], to = [...edge.target.around, edge.target];
    const isBlock = (item) => edge.block !== null && item.path === edge.block && item.kind !== "operator";
    let level = edge.block === null ? from.findIndex((item, place) => item !== to[place]) : from.findIndex(isBlock);
    if (level < 0) level = from.length - 1;
    if (from[level] === to[level] || edge.isBack) this.loop(from[level], to[level], edge);
    else this.piece(from[level].parent, from[level], to[level], edge);
    for (let place = level; place < from.length - 1; place++) this.piece(from[place], from[place + 1], OUT, edge);
    for (let place = level; place < to.length - 1; place++) this.piece(to[place], IN, to[place + 1], edge);
  }

  // A line that leads back up, beside the boxes.
  loop(source, target, edge) {
    const key = `${source.id}\n${target.id}`;
    if (!this.loops.has(key)) this.loops.set(key, { source, target, edges: [] });
    this.loops.get(key).edges.push(edge);
    source.hasLoop = target.hasLoop = true;
  }

  piece(box, source, target, edge) {
    box.pieces ??= new Map();
    const key = `${source.id}\n${target.id}`;
    if (!box.pieces.has(key)) box.pieces.set(key, { source, target, edges: [] });
    box.pieces.get(key).edges.push(edge);
  }

  size(item) {
    if (!item.children) return;
    for (const child of item.children) this.size(child);
    const graph = new dagre.graphlib.Graph();
    graph.setGraph({ rankdir: "TB", ranksep: RANK_GAP, nodesep: NODE_GAP, edgesep: 8 });
    graph.setDefaultEdgeLabel(() => ({}));
    for (const child of item.children) {
      const loop = child.hasLoop ? LOOP : 0;
      graph.setNode(child.id, { width: child.width + loop, height: child.height });
    }
    item.drawn = this.withoutStubs(item);
    for (const { source, target, label } of item.drawn) {
      for (const port of [source, target]) if (port === IN || port === OUT) graph.setNode(port.id, { width: 1, height: 1 });
      const width = label ? measure(label, 8) + 6 : 0;
      graph.setEdge(source.id, target.id, { width, height: label ? 10 : 0, labelpos: "c", weight: source === IN || target === OUT ? 1 : 2 });
    }
    dagre.layout(graph);
    const [from, to, bottom] = this.extent(graph, item);
    const header = item.kind === "root" ? 0 : PAD + LINE * item.lines.length;
    item.width = Math.max(to - from + 2 * PAD, item.titleWidth ?? 0);
    item.height = bottom + 2 * PAD + header;
    const left = (item.width - (to - from)) / 2 - from, top = header + PAD;
    for (const child of item.children) {
      const at = graph.node(child.id);
      child.at = [left + at.x - at.width / 2, top + at.y - child.height / 2];
    }
    for (const piece of item.drawn) {
      const { points, x, y } = graph.edge(piece.source.id, piece.target.id);
      piece.points = points.map((point) => [left + point.x, top + point.y]);
      if (piece.label) piece.labelAt = [left + x, top + y + 3];
    }
    item.ports = {};
    for (const [name, port] of [["in", IN], ["out", OUT]]) {
      if (graph.hasNode(port.id)) item.ports[name] = left + graph.node(port.id).x;
    }
  }

  // Left, right and bottom of all nodes and lines: dagre leaves out lines that swing wide.
  extent(graph, item) {
    const nodes = graph.nodes().map((id) => graph.node(id));
    if (!nodes.length) return [0, 0, 0];
    const points = item.drawn.flatMap(({ source, target }) => graph.edge(source.id, target.id).points);
    return [Math.min(...nodes.map(({ x, width }) => x - width / 2), ...points.map(({ x }) => x)),
      Math.max(...nodes.map(({ x, width }) => x + width / 2), ...points.map(({ x }) => x)),
      Math.max(...nodes.map(({ y, height }) => y + height / 2))];
  }

  // Of a source or target with very many edges the first is drawn; the others become stubs.
  withoutStubs(item) {
    const pieces = [...(item.pieces ?? new Map()).values()];
    const outgoing = new Map(), incoming = new Map();
    const list = (map, key) => map.get(key) ?? map.set(key, []).get(key);
    for (const piece of pieces) {
      list(outgoing, piece.source).push(piece);
      list(incoming, piece.target).push(piece);
    }
    const isPort = (end) => end === IN || end === OUT;
    const kept = pieces.filter((piece) => isPort(piece.source) || isPort(piece.target)
      || ((outgoing.get(piece.source).length <= MAX_EDGES || outgoing.get(piece.source)[0] === piece)
        && (incoming.get(piece.target).length <= MAX_EDGES || incoming.get(piece.target)[0] === piece)));
    const chosen = new Set(kept);
    for (const piece of kept) {
      const isWhole = this.hasShapes && !isPort(piece.source) && !isPort(piece.target);
      if (isWhole) piece.label = sizeOf([...piece.edges[0].texts][0]);
    }
    this.stubs.push(...pieces.filter((piece) => !chosen.has(piece)));
    return kept;
  }

  place(item, x, y) {
    item.x = x;
    item.y = y;
    for (const child of item.children ?? []) this.place(child, x + child.at[0], y + child.at[1]);
  }

  // The lines of a box: they end at the port of a box that they lead to, and begin at its own.
  connect(item) {
    for (const { source, target, points, edges, label, labelAt } of item.drawn ?? []) {
      const line = points.map(([x, y]) => [item.x + x, item.y + y]);
      const last = line.length - 1;
      if (source === IN) line[0] = [item.x + item.ports.in, item.y];
      else if (source.ports?.out !== undefined) line[0] = [source.x + source.ports.out, source.y + source.height];
      if (target === OUT) line[last] = [item.x + item.ports.out, item.y + item.height];
      else if (target.ports?.in !== undefined) line[last] = [target.x + target.ports.in, target.y];
      this.lines.push({ points: line, edges, hasHead: target !== OUT, label, labelAt: labelAt && [item.x + labelAt[0], item.y + labelAt[1]] });
    }
    for (const child of item.children ?? []) this.connect(child);
  }

  connectLoops() {
    for (const { source, target, edges } of this.loops.values()) {
      const from = [source.x + source.width, source.y + source.height - 6], to = [target.x + target.width, target.y + 10];
      const right = Math.max(from[0], to[0]) + LOOP - 6;
      this.lines.push({ points: [from, [right, from[1] - 6], [right, to[1] + 6], to], edges, hasHead: true });
    }
  }
}

// A smooth path through the points that dagre gives.
const smooth = (points) => {
  const text = ([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`;
  const middle = (one, other) => [(one[0] + other[0]) / 2, (one[1] + other[1]) / 2];
  if (points.length < 3) return `M${points.map(text).join("L")}`;
  let path = `M${text(points[0])}`;
  for (let place = 1; place < points.length - 1; place++) {
    const end = place === points.length - 2 ? points[place + 1] : middle(points[place], points[place + 1]);
    path += `Q${text(points[place])} ${text(end)}`;
  }
  return path;
};
