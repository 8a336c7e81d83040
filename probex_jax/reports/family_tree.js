// What a family tree does. The lines and marks are in the page already; here are the names, where
// there is room for them, and what is told of a model. Texts are written as text alone.
(() => {
  const root = document.currentScript.parentElement;
  const view = root.querySelector(".ft-view"), svg = view.querySelector("svg");
  const names = svg.querySelector(".ft-names"), panel = view.querySelector(".ft-panel");
  const said = root.querySelector(".ft-said"), box = root.querySelector(".ft-bar input");
  const found = root.querySelector(".ft-found");
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const W = svg.viewBox.baseVal.width, H = svg.viewBox.baseVal.height;
  const CLOSEST = 5, READABLE = .5, WITH_KINDS = .8, MOST_NAMES = 900, NEAR = 14, FINGER = 24;
  const BEFORE_FORK = 180, IN_A_BLOCK = 172, WITH_KIND = 80, FEW = 300, LISTED = 60;
  const nodes = data.nodes.map(([name, x, y, origin, path, architecture, copies]) =>
    ({name, x, y, origin, path, architecture, copies, parents: [], children: []}));
  const edges = data.edges.map(([parent, child, kind, p, confidence, distance, coefficient, error,
    layers]) => ({parent: nodes[parent], child: nodes[child], kind: data.kinds[kind], number: kind, p,
    confidence, distance, coefficient, error, layers}));
  // The lines of one look are one path, in the order of the edges.
  const drawn = [...svg.querySelectorAll(".ft-line")].flatMap(path =>
    path.getAttribute("d").split(/(?=M)/));
  edges.forEach((edge, place) => {
    edge.line = drawn[place];
    edge.child.parents.push(edge);
    edge.parent.children.push(edge);
  });
  for (const node of nodes) {
    node.parents.sort((a, b) => (b.coefficient ?? 0) - (a.coefficient ?? 0) || b.confidence - a.confidence);
    node.children.sort((a, b) => a.child.x - b.child.x || a.child.y - b.child.y);
  }
  const roots = nodes.filter(node => !node.parents.length);
  let x = W / 2, y = H / 2, scale = 1, chosen = null, asked = false, named = null, matches = [], at = -1;

  const size = () => [svg.clientWidth || W, svg.clientHeight || H];
  const whole = () => Math.min(size()[0] / W, size()[1] / H, 1.5);
  const draw = () => {
    asked = false;
    const [wide, high] = size();
    x = Math.min(Math.max(x, 0), W);
    y = Math.min(Math.max(y, 0), H);
    svg.setAttribute("viewBox", `${x - wide / scale / 2} ${y - high / scale / 2} ${wide / scale} ${high / scale}`);
    svg.style.setProperty("--ft-dot", `${Math.min(Math.max(10 * scale, 3), 13)}px`);
    svg.classList.toggle("ft-far", scale < .3);
    // Names beyond the picture's edge are there already, half a picture on each side.
    if (!named || named.scale !== scale || named.wide !== wide || named.chosen !== chosen ||
      Math.abs(named.x - x) * scale > wide / 3 || Math.abs(named.y - y) * scale > high / 3) {
      named = {x, y, scale, wide, chosen};
      writeNames(wide / scale, high / scale);
    }
  };
  const redraw = () => { if (!asked) { asked = true; requestAnimationFrame(draw); } };

  const pen = document.createElement("canvas").getContext("2d");
  const font = getComputedStyle(svg).fontFamily;
  const cut = (text, room) => {  // a text that is no wider
    if (pen.measureText(text).width <= room) return text;
    let low = 0, high = text.length;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (pen.measureText(text.slice(0, middle) + "…").width <= room) low = middle;
      else high = middle - 1;
    }
    return low ? text.slice(0, low) + "…" : "";
  };
  const make = (tag, attributes, text = "") => {
    const made = document.createElementNS(svg.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return made;
  };
  const writeNames = (wide, high) => {
    names.replaceChildren();
    const inView = node => Math.abs(node.x - x) < wide + 100 && Math.abs(node.y - y) < high;
    const px = Math.min(Math.max(12 * scale, 11), 15), unit = 1 / scale;
    pen.font = `${px}px ${font}`;
    if (scale < READABLE) return writeRoots(wide, high, px, unit);
    const shown = nodes.filter(inView).slice(0, MOST_NAMES);
    shown.sort((a, b) => (a === chosen) - (b === chosen));  // the chosen one's name lies on top
    for (const node of shown) {
      const isLeaf = !node.children.length;
      if (scale >= WITH_KINDS && node.parents.length) writeKind(node, unit);
      writeName(node, isLeaf, (isLeaf ? IN_A_BLOCK : BEFORE_FORK) * scale, px, unit);
    }
  };
  const writeName = (node, isLeaf, room, px, unit) => {
    const badge = node.copies.length ? `+${node.copies.length} ${node.copies.length > 1 ? "copies" : "copy"}` : "";
    pen.font = `${px * .85}px ${font}`;
    const badgeRoom = badge ? pen.measureText(badge).width + 8 : 0;
    pen.font = `${node === chosen ? "bold " : ""}${px}px ${font}`;
    const shown = node === chosen ? node.name : cut(node.name, Math.max(room - badgeRoom - 4, 30));
    const left = node.x + 9 * Math.max(unit, .8), base = isLeaf ? node.y + px * unit * .35 : node.y - 5;
    names.append(make("text", {x: left, y: base, "font-size": px * unit,
      class: node === chosen ? "ft-is" : ""}, shown));
    if (!badge) return;
    const start = left + (pen.measureText(shown).width + 5) * unit;
    names.append(make("rect", {x: start, y: base - px * unit * .85, width: badgeRoom * unit,
      height: px * unit * 1.1, rx: px * unit * .5}));
    names.append(make("text", {x: start + 4 * unit, y: base - px * unit * .05, "font-size": px * .85 * unit,
      class: "ft-many"}, badge));
  };
  const writeKind = (node, unit) => {
    const px = Math.min(Math.max(9.5 * scale, 9.5), 12), [first, ...others] = node.parents;
    pen.font = `${px}px ${font}`;
    const text = others.length ? `${first.kind} of ${others.length + 1}` : first.kind;
    names.append(make("text", {x: node.x - 9, y: node.y - 4, "font-size": px * unit,
      "text-anchor": "end", "data-kind": first.number}, cut(text, WITH_KIND * scale)));
  };
  // From afar only roots have names, those of the largest families first, where they have room.
  const writeRoots = (wide, high, px, unit) => {
    const kept = [];
    pen.font = `${px}px ${font}`;
    for (const node of chosen ? [chosen, ...roots] : roots) {
      if (Math.abs(node.x - x) > wide || Math.abs(node.y - y) > high || kept.length > 150) continue;
      const shown = cut(node.name, 170), long = pen.measureText(shown).width * unit;
      const area = {x: node.x, y: node.y, long};
      if (kept.some(other => Math.abs(other.y - area.y) < px * unit * 1.2 &&
        area.x < other.x + other.long + 12 * unit && other.x < area.x + long + 12 * unit)) continue;
      kept.push(area);
      names.append(make("text", {x: node.x + 7 * unit, y: node.y - 5 * unit, "font-size": px * unit,
        class: node === chosen ? "ft-is" : ""}, shown));
    }
  };

  const zoomBy = (factor, clientX, clientY) => {
    const frame = svg.getBoundingClientRect(), before = scale;
    const dx = (clientX ?? frame.x + frame.width / 2) - frame.x - frame.width / 2;
    const dy = (clientY ?? frame.y + frame.height / 2) - frame.y - frame.height / 2;
    scale = factor ? Math.min(Math.max(scale * factor, whole()), CLOSEST) : whole();
    x = factor ? x + dx / before - dx / scale : W / 2;
    y = factor ? y + dy / before - dy / scale : H / 2;
    redraw();
  };
  const zoomAt = factor => {  // the chosen model stays where it is
    const frame = svg.getBoundingClientRect(), [wide, high] = size();
    const dx = chosen ? (chosen.x - x) * scale : 0, dy = chosen ? (chosen.y - y) * scale : 0;
    if (Math.abs(dx) > wide / 2 || Math.abs(dy) > high / 2) return zoomBy(factor);
    zoomBy(factor, frame.x + wide / 2 + dx, frame.y + high / 2 + dy);
  };
  const panBy = (dx, dy) => { x -= dx / scale; y -= dy / scale; redraw(); };
  const bringIntoView = node => {  // also from behind the panel
    const [wide, high] = size();
    const isWide = panel.hidden || panel.offsetWidth > wide * .7;
    const right = wide / 2 - (isWide ? 0 : panel.offsetWidth) - 170 * Math.min(scale, 1);
    const low = high / 2 - (panel.hidden || !isWide ? 0 : panel.offsetHeight) - 30;
    const dx = (node.x - x) * scale, dy = (node.y - y) * scale;
    if (dx < 90 - wide / 2 || dx > right) x = node.x - Math.min(0, (right - wide / 2 + 90) / 2) / scale;
    if (dy < 30 - high / 2 || dy > low) y = node.y - Math.min(0, (low - high / 2) / 2) / scale;
    redraw();
  };

  const number = value => value === 0 || (Math.abs(value) >= .001 && Math.abs(value) < 1e4)
    ? String(Number(value.toPrecision(3))) : value.toExponential(1);
  const edgeIn = edge => edge.coefficient === null ? edge.kind : `${edge.kind} ${edge.coefficient.toFixed(2)}`;
  const wholeLine = ({parent, line}) => {  // with what it shares with others up to a fork
    const [, x1, y1] = /^M(\d+) (\d+)/.exec(line);
    return (Number(y1) === parent.y ? `M${parent.x} ${parent.y}H${x1}` : "") + line;
  };
  const counted = (count, one, many) => `${count} ${count === 1 ? one : many}`;
  const choose = (node, edge = null) => {
    chosen = node;
    svg.querySelector(".ft-chosen").setAttribute("d", node ? `M${node.x} ${node.y}h.1` : "");
    const lines = !node ? [] : edge ? [edge] : [...node.parents, ...node.children];
    svg.querySelector(".ft-chosen-line").setAttribute("d", lines.map(wholeLine).join(""));
    if (!node) { panel.hidden = true; return redraw(); }
    const from = node.parents.map(one => `${edgeIn(one)} of ${one.parent.name}, confidence ${number(one.confidence)}`);
    said.textContent = [node.name, ...(from.length ? from : [data.origins[node.origin]]),
      counted(node.children.length, "child", "children"),
      ...(node.copies.length ? [counted(node.copies.length, "copy", "copies")] : [])].join("; ");
    if (!panel.hidden) tell();
    bringIntoView(node);
  };
  const put = (parent, tag, text = "", name = "") => {
    const made = parent.appendChild(document.createElement(tag));
    made.textContent = text;
    if (name) made.className = name;
    return made;
  };
  const link = (parent, text, node) => {
    const button = put(parent, "button", text, "ft-go");
    button.type = "button";
    button.addEventListener("click", () => { choose(node); panel.focus(); });
  };
  const tell = () => {
    panel.replaceChildren();
    panel.hidden = false;
    panel.scrollTop = 0;
    const node = chosen;
    put(panel, "h2", node.name);
    const close = put(panel, "button", "×", "ft-close");
    close.type = "button";
    close.setAttribute("aria-label", "close");
    close.addEventListener("click", () => { panel.hidden = true; svg.focus(); });
    put(panel, "p", data.origins[node.origin]);
    if (node.path) put(put(panel, "p"), "code", node.path);
    for (const edge of node.parents) {
      put(panel, "h3", `Parent: ${edgeIn(edge)}`);
      link(panel, edge.parent.name, edge.parent);
      const list = put(panel, "dl");
      const rows = [["confidence", number(edge.confidence)], ["p-value", number(edge.p)],
        ["distance", number(edge.distance)]];
      if (edge.coefficient !== null) rows.push(["coefficient", number(edge.coefficient)]);
      if (edge.error !== null) rows.push(["error", number(edge.error)]);
      if (edge.layers.length) rows.push(["layers", edge.layers.join(", ")]);
      for (const [what, value] of rows) { put(list, "dt", what); put(list, "dd", value); }
    }
    if (node.children.length) {
      put(panel, "h3", counted(node.children.length, "child", "children"));
      const list = put(panel, "ul");
      for (const edge of node.children.slice(0, LISTED)) {
        const item = put(list, "li");
        link(item, edge.child.name, edge.child);
        item.append(` ${edgeIn(edge)}`);
      }
      const more = node.children.length - LISTED;
      if (more > 0) put(panel, "p", `and ${more} more`);
    }
    if (node.copies.length) {
      put(panel, "h3", counted(node.copies.length, "copy", "copies"));
      const list = put(panel, "ul");
      for (const copy of node.copies.slice(0, LISTED)) put(list, "li", copy);
      if (node.copies.length > LISTED) put(panel, "p", `and ${node.copies.length - LISTED} more`);
    }
    if (node.architecture) {
      const list = put(panel, "dl");
      put(list, "dt", "architecture");
      put(list, "dd", node.architecture.slice(0, 16));
    }
  };
  const open = () => { if (!chosen) choose(roots[0]); tell(); bringIntoView(chosen); };

  const probe = make("path", {});
  const nearest = (clientX, clientY, reach) => {  // a model, or else the model that a line leads to
    const [px, py] = [x + (clientX - svg.getBoundingClientRect().x - size()[0] / 2) / scale,
      y + (clientY - svg.getBoundingClientRect().y - size()[1] / 2) / scale];
    let best = null, least = Infinity;
    for (const node of nodes) {
      // Its name belongs to it.
      const long = scale >= READABLE ? Math.min(node.name.length * 6.5 * Math.max(scale, .9), 150 * scale) / scale : 0;
      const dx = Math.max(node.x - px, px - node.x - long, 0), gap = Math.hypot(dx, node.y - py);
      if (gap < least) { best = node; least = gap; }
    }
    if (least * scale <= reach) return [best, null];
    svg.append(probe);
    probe.style.cssText = `stroke-width:${12 / scale}px;vector-effect:none;visibility:hidden`;
    const point = Object.assign(svg.createSVGPoint(), {x: px, y: py});
    const hit = edges.find(edge => {
      const [low, high] = [edge.parent.y, edge.child.y].sort((a, b) => a - b);
      const [left, right] = [edge.parent.x, edge.child.x].sort((a, b) => a - b);
      if (px < left - 150 || px > right + 250 || py < low - 9 / scale || py > high + 9 / scale) return false;
      probe.setAttribute("d", edge.line);
      return probe.isPointInStroke(point);
    });
    probe.remove();
    return hit ? [hit.child, hit] : [null, null];
  };
  onGestures(svg, {
    pan: panBy,
    zoom: zoomBy,
    mayZoom: isIn => isIn ? scale < CLOSEST : scale > whole() * 1.001,
    tap: (clientX, clientY, isMouse) => {
      const [node, edge] = nearest(clientX, clientY, isMouse ? NEAR : FINGER);
      choose(node, edge);
      if (node) { tell(); bringIntoView(node); }
    },
    point: () => {},
  });

  const nearIn = (those, by) => {  // the next above or below
    const beyond = those.filter(node => by * (node.y - chosen.y) > 0 ||
      (node.y === chosen.y && by * (node.x - chosen.x) > 0));
    return beyond.sort((a, b) => by * (a.y - b.y || a.x - b.x))[0];
  };
  const go = step => {
    if (!chosen) return choose(roots[0]);
    const next = step();
    if (next) choose(next);
  };
  const sideways = by => go(() => {  // siblings down their column, then in the next one
    const siblings = chosen.parents[0]?.parent.children.map(edge => edge.child);
    return siblings?.[siblings.indexOf(chosen) + by] ||
      nearIn(siblings ? nodes.filter(node => node.x === chosen.x) : roots, by);
  });
  const keys = {
    ArrowRight: () => go(() => {
      const those = chosen.children.map(edge => edge.child);
      return those.sort((a, b) => Math.abs(a.y - chosen.y) - Math.abs(b.y - chosen.y) || a.x - b.x)[0];
    }),
    ArrowLeft: () => go(() => chosen.parents[0]?.parent),
    ArrowUp: () => sideways(-1), ArrowDown: () => sideways(1),
    Home: () => choose(roots[0]), Enter: open, " ": open, Escape: () => choose(null),
    "+": () => zoomAt(1.6), "=": () => zoomAt(1.6), "-": () => zoomAt(.625), "0": () => zoomBy(0),
  };
  svg.addEventListener("keydown", event => {
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });
  panel.addEventListener("keydown", event => {
    if (event.key === "Escape") { panel.hidden = true; svg.focus(); }
  });
  for (const button of view.querySelectorAll("[data-zoom]"))
    button.addEventListener("click", () => zoomBy(Number(button.dataset.zoom)));

  const known = [...nodes.flatMap(node => [node.name, ...node.copies].map(name => [name, node])),
    ...data.alone.map(name => [name, null])].map(([name, node]) => [name.toLowerCase(), name, node]);
  const search = () => {
    const sought = box.value.trim().toLowerCase();
    matches = sought ? known.filter(([name]) => name.includes(sought)) : [];
    at = -1;
    const hit = svg.querySelector(".ft-hit");
    hit.classList.toggle("ft-some", matches.length > 0);
    hit.setAttribute("d", matches.map(([, , node]) => node ? `M${node.x} ${node.y}h.1` : "").join(""));
    found.textContent = sought ? `${matches.length} found` : "";
  };
  const walk = by => {
    if (!matches.length) return;
    at = at < 0 ? (by > 0 ? 0 : matches.length - 1) : (at + by + matches.length) % matches.length;
    const [, name, node] = matches[at];
    const which = !node ? " is without kin, listed below" : name === node.name ? "" : ` is a copy of ${node.name}`;
    found.textContent = `${at + 1} of ${matches.length}: ${name}${which}`;
    if (!node) return;
    if (scale < READABLE) scale = .8;
    choose(node);
    x = node.x; y = node.y;
    bringIntoView(node);
  };
  box.addEventListener("input", search);
  box.addEventListener("keydown", event => {
    if (event.key === "Enter") walk(event.shiftKey ? -1 : 1);
  });
  for (const button of root.querySelectorAll("[data-find]"))
    button.addEventListener("click", () => walk(Number(button.dataset.find)));

  scale = whole();
  if (scale < WITH_KINDS && nodes.length <= FEW) {  // begin where names can be read
    const [wide, high] = size();
    scale = .85;
    x = roots[0].x + wide / scale / 2 - 40;
    y = Math.max(roots[0].y, high / scale / 2);
  }
  new ResizeObserver(() => { scale = Math.max(scale, whole()); redraw(); }).observe(svg);
  draw();
})();
