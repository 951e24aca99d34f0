// Choosing on the map with the pointer: a click, a rectangle, or a shape drawn freely; with shift they take out again.

import { html, useRef, useState } from '/vendor/htm-preact.js';
import { at } from '/map.js';
import { within } from '/shape.js';

// All neurons between two corners; layers of other sizes are met at the same shares of their rows.
export function rectangle(selection, [fromLayer, fromNeuron], [toLayer, toNeuron], value) {
  selection.edit(next => {
    for (let layer = Math.min(fromLayer, toLayer); layer <= Math.max(fromLayer, toLayer); layer++) {
      const size = selection.sizes[layer];
      const ends = [fromNeuron / selection.sizes[fromLayer], toNeuron / selection.sizes[toLayer]].map(share => Math.floor(share * size));
      const start = selection.starts[layer];
      next.fill(value, start + Math.min(...ends), start + Math.min(size, Math.max(...ends) + 1));
    }
  });
}

export function useBrush({ canvas, selection, view, free, edited, setFocus, setOver }) {
  const [trail, setTrail] = useState(null);
  const pressed = useRef(null);
  const share = event => {
    const { left, top, width, height } = canvas.current.getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height].map(value => Math.max(0, Math.min(1, value)));
  };
  const placed = event => at(canvas.current, selection, event.clientX, event.clientY, view);
  const onPointerDown = event => {
    pressed.current = { place: placed(event), points: [share(event)] };
    canvas.current.setPointerCapture(event.pointerId);
  };
  const onPointerMove = event => {
    setOver(placed(event));
    if (!pressed.current) return;
    const { points } = pressed.current;
    if (free) points.push(share(event)); else points[1] = share(event);
    setTrail([...points]);
  };
  const onPointerUp = event => {
    if (!pressed.current) return;
    const { place, points } = pressed.current;
    const end = placed(event);
    pressed.current = null;
    setTrail(null);
    const value = event.shiftKey ? 0 : 1;
    if (place[0] === end[0] && place[1] === end[1] && points.length < 4) {
      selection.edit(next => { next[selection.starts[end[0]] + end[1]] ^= 1; });
    } else if (free) {
      selection.edit(next => within(points, selection, view, (from, to) => next.fill(value, from, to)));
    } else rectangle(selection, place, end, value);
    setFocus(end);
    edited();
  };
  const onPointerCancel = () => { pressed.current = null; setTrail(null); };
  const onPointerLeave = () => setOver(null);
  return { handlers: { onPointerDown, onPointerMove, onPointerUp, onPointerCancel, onPointerLeave }, drawn: trail && html`<${Trail} points=${trail} free=${free} />` };
}

function Trail({ points, free }) {
  const [[x, y], [endX, endY]] = [points[0], points[points.length - 1]];
  const outline = free ? points : [[x, y], [endX, y], [endX, endY], [x, endY]];
  return html`<svg class="trail" viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true"><polygon points=${outline.map(point => point.join()).join(' ')} /></svg>`;
}
