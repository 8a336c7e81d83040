// Pointers and the wheel on a picture: panning, pinching, taps. A function of its own so that
// pictures of one page may each have it.
function onGestures(svg, {pan, zoom, mayZoom, tap, point}) {
  const STILL = 6;
  const pointers = new Map();
  let moved = 0;
  svg.addEventListener("pointerdown", event => {
    if (event.button) return;
    svg.setPointerCapture(event.pointerId);
    if (!pointers.size) moved = 0;
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  svg.addEventListener("pointermove", event => {
    const before = pointers.get(event.pointerId);
    if (!before) {
      if (event.pointerType === "mouse") point(event.clientX, event.clientY);
      return;
    }
    const now = [event.clientX, event.clientY];
    const others = [...pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    pointers.set(event.pointerId, now);
    const dx = now[0] - before[0], dy = now[1] - before[1];
    moved += Math.abs(dx) + Math.abs(dy);
    if (!others.length) return pan(dx, dy);
    const [other] = others;
    const apart = at => Math.hypot(at[0] - other[0], at[1] - other[1]) || 1;
    pan(dx / 2, dy / 2);
    zoom(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  });
  const released = event => {
    if (!pointers.delete(event.pointerId) || event.type !== "pointerup") return;
    if (moved < STILL) tap(event.clientX, event.clientY, event.pointerType === "mouse");
  };
  svg.addEventListener("pointerup", released);
  svg.addEventListener("pointercancel", released);
  svg.addEventListener("pointerleave", event => {
    if (event.pointerType === "mouse" && !pointers.size) point();
  });
  svg.addEventListener("wheel", event => {
    // What cannot be zoomed further leaves the wheel to the page.
    if (!mayZoom(event.deltaY < 0)) return;
    event.preventDefault();
    const pixels = event.deltaY * [1, 30, 300][event.deltaMode];
    zoom(Math.exp(-Math.min(Math.max(pixels, -300), 300) / 400), event.clientX, event.clientY);
  }, {passive: false});
}
