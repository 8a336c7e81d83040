// What an interactive map does. It finds its map as its own parent, so that several may stand in one
// page. Texts are in the page already, escaped; they are written as text alone.
(() => {
  const root = document.currentScript.parentElement;
  const view = root.querySelector(".px-view"), svg = view.querySelector("svg");
  const tip = view.querySelector("output");
  const W = svg.viewBox.baseVal.width, H = svg.viewBox.baseVal.height;
  const CLOSEST = 60, NEAR = 14, NEAR_FINGER = 26, ANCHORS = 12, NAME_HIGH = 6.5;
  const marks = [...svg.querySelectorAll(".px-mark")].map(node => {
    const place = node.transform.baseVal.getItem(0).matrix;
    return {node, x: place.e, y: place.f, c: node.dataset.c, s: node.dataset.s, faded: false};
  });
  const models = marks.filter(mark => mark.node.querySelector("title"));
  for (const model of models) {  // the browser's own hint would come on top of ours
    const title = model.node.querySelector("title");
    model.title = title.textContent;
    title.remove();
    const has = kind => model.node.querySelector(kind);
    model.wide = model.high = has(".px-star") ? 13 : has(".px-ring") ? 10 : 8;
  }
  const inOrder = [...models].sort((a, b) => a.x - b.x);
  let x = 0, y = 0, zoom = 1, size = 0, shown = null, asked = false;

  // SVG units of a CSS pixel; the picture may have empty stripes beside it.
  const unit = () =>
    Math.max(W / (svg.clientWidth || W), H / (svg.clientHeight || H)) / zoom;
  const draw = () => {
    asked = false;
    x = Math.min(Math.max(x, -W / zoom / 2), W - W / zoom / 2);
    y = Math.min(Math.max(y, -H / zoom / 2), H - H / zoom / 2);
    svg.setAttribute("viewBox", `${x} ${y} ${W / zoom} ${H / zoom}`);
    svg.style.touchAction = zoom > 1 ? "none" : "pan-y";
    const now = unit();
    if (now !== size) {
      size = now;
      for (const model of models)
        model.node.setAttribute("transform", `translate(${model.x} ${model.y}) scale(${size})`);
      placeNames();
    }
    place();
  };
  // A name stands beside one of the points in the middle of its group, where it covers neither
  // points nor other names; else it is left out. Nearer by, there is room for more.
  const names = marks.filter(mark => !mark.title);
  const middle = its => its.sort((a, b) => a - b)[its.length >> 1];
  for (const name of names) {
    const its = models.filter(model => model.c === name.c && model.s === name.s);
    const x = middle(its.map(model => model.x)), y = middle(its.map(model => model.y));
    const far = model => (model.x - x) ** 2 + (model.y - y) ** 2;
    name.beside = its.sort((a, b) => far(a) - far(b)).slice(0, ANCHORS);
  }
  const placeNames = () => {
    const apart = (a, b) => Math.abs(a.x - b.x) >= (a.wide + b.wide) * size ||
      Math.abs(a.y - b.y) >= (a.high + b.high) * size;
    const inside = a => a.x >= a.wide * size && a.x <= W - a.wide * size &&
      a.y >= a.high * size && a.y <= H - a.high * size;
    const taken = [...models], high = NAME_HIGH;
    // All are measured before one is moved: the browser lays out in between.
    for (const name of names) name.length ||= name.node.firstChild.getComputedTextLength();
    for (const name of names) {
      const wide = name.length / 2 + 2;
      const free = name.beside.flatMap(({x, y, wide: r}) => {
        const dx = (r + wide) * size, dy = (r + high) * size;
        return [[x, y - dy], [x, y + dy], [x + dx, y], [x - dx, y]];
      }).map(([x, y]) => ({x, y, wide, high}))
        .find(box => inside(box) && taken.every(other => apart(box, other)));
      name.node.classList.toggle("px-fits", !!free);
      if (!free) continue;
      taken.push(free);
      name.node.setAttribute("transform", `translate(${free.x} ${free.y}) scale(${size})`);
    }
  };
  const redraw = () => { if (!asked) { asked = true; requestAnimationFrame(draw); } };
  const zoomBy = (factor, clientX, clientY) => {
    const box = svg.getBoundingClientRect(), before = unit();
    const dx = (clientX ?? box.x + box.width / 2) - box.x - box.width / 2;
    const dy = (clientY ?? box.y + box.height / 2) - box.y - box.height / 2;
    const centreX = x + W / zoom / 2, centreY = y + H / zoom / 2;
    zoom = factor ? Math.min(Math.max(zoom * factor, 1), CLOSEST) : 1;
    const after = unit();
    x = factor ? centreX + dx * (before - after) - W / zoom / 2 : 0;
    y = factor ? centreY + dy * (before - after) - H / zoom / 2 : 0;
    redraw();
  };
  const panBy = (dx, dy) => { x -= dx * unit(); y -= dy * unit(); redraw(); };

  const place = () => {  // the hint stays inside the map, above its model if there is room
    if (!shown) return;
    const at = shown.node.getBoundingClientRect(), box = view.getBoundingClientRect();
    const middle = at.x + at.width / 2 - box.x, above = at.y - box.y - tip.offsetHeight - 4;
    const left = Math.min(Math.max(middle - tip.offsetWidth / 2, 2),
      Math.max(box.width - tip.offsetWidth - 4, 2));
    const top = above >= 0 ? above : at.y + at.height - box.y + 4;
    tip.style.transform = `translate(${left}px, ${top}px)`;
  };
  const show = model => {
    if (shown === model) return;
    if (shown) shown.node.classList.remove("px-shown");
    shown = model;
    tip.classList.toggle("px-shown", !!model);
    tip.textContent = model ? model.title : "";
    if (!model) return;
    model.node.classList.add("px-shown");
    place();
  };
  const nearest = (clientX, clientY, reach) => {
    const matrix = svg.getScreenCTM().inverse();
    const at = new DOMPoint(clientX, clientY).matrixTransform(matrix);
    let best = null, least = (reach * unit()) ** 2;
    for (const model of models) {
      const gap = (model.x - at.x) ** 2 + (model.y - at.y) ** 2;
      if (!model.faded && gap <= least) { best = model; least = gap; }
    }
    return best;
  };

  onGestures(svg, {
    pan: panBy,
    zoom: zoomBy,
    mayZoom: isIn => isIn ? zoom < CLOSEST : zoom > 1,
    tap: (clientX, clientY, isMouse) =>
      show(nearest(clientX, clientY, isMouse ? NEAR : NEAR_FINGER)),
    point: (clientX, clientY) =>
      show(clientX === undefined ? null : nearest(clientX, clientY, NEAR)),
  });

  const step = by => {
    const those = inOrder.filter(model => !model.faded);
    if (!those.length) return;
    const at = those.indexOf(shown);
    const next = at < 0 ? (by > 0 ? 0 : those.length - 1) : (at + by + those.length) % those.length;
    const model = those[next], w = W / zoom, h = H / zoom;
    if (model.x < x || model.x > x + w || model.y < y || model.y > y + h) {
      x = model.x - w / 2;
      y = model.y - h / 2;
    }
    draw();
    show(model);
  };
  const keys = {
    ArrowLeft: () => panBy(60, 0), ArrowRight: () => panBy(-60, 0),
    ArrowUp: () => panBy(0, 60), ArrowDown: () => panBy(0, -60),
    "+": () => zoomBy(1.6), "=": () => zoomBy(1.6), "-": () => zoomBy(0.625),
    "0": () => zoomBy(0), n: () => step(1), p: () => step(-1), Escape: () => show(null),
  };
  svg.addEventListener("keydown", event => {
    const act = keys[event.key] || keys[event.key.toLowerCase()];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });
  for (const button of view.querySelectorAll("[data-zoom]"))
    button.addEventListener("click", () => zoomBy(Number(button.dataset.zoom)));

  const entries = [...root.querySelectorAll(".px-legend button")];
  for (const entry of entries) entry.addEventListener("click", () => {
    entry.setAttribute("aria-pressed", entry.getAttribute("aria-pressed") !== "true");
    const pressed = entries.filter(one => one.getAttribute("aria-pressed") === "true");
    const whole = pressed.filter(one => one.dataset.c && one.dataset.s);
    const wanted = key => new Set(pressed.map(one => one.dataset[key]).filter(Boolean));
    const c = wanted("c"), s = wanted("s");
    const fits = mark => whole.length
      ? whole.some(one => one.dataset.c === mark.c && one.dataset.s === mark.s)
      : (!c.size || c.has(mark.c)) && (!s.size || s.has(mark.s));
    for (const mark of marks) {
      mark.faded = !!mark.c && !fits(mark);
      mark.node.classList.toggle("px-faded", mark.faded);
    }
    if (shown?.faded) show(null);
  });

  new ResizeObserver(redraw).observe(svg);
  window.addEventListener("beforeprint", draw);
  draw();
})();
