// All neurons as rows: sorted, filtered, and only those in sight are drawn.

import { html, useEffect, useState } from '/vendor/htm-preact.js';
import { sortedRows } from '/in_order.js';
import { number } from '/words.js';

const ROW = 28;
const SEEN = 14;

const TALLEST = 16e6; // pixels: browsers end not far beyond

function filtered(selection, values, layer, only) {
  if (!values) return new Uint32Array();
  const from = layer === '' ? 0 : selection.starts[Number(layer)];
  const to = layer === '' ? selection.total : from + selection.sizes[Number(layer)];
  const found = new Uint32Array(to - from);
  let count = 0;
  for (let at = from; at < to; at++) if (only === 'all' || Boolean(selection.chosen[at]) === (only === 'chosen')) found[count++] = at;
  return found.slice(0, count);
}

export function Table({ selection, values, turn, edited, setFocus }) {
  const [order, setOrder] = useState('lowest');
  const [layer, setLayer] = useState('');
  const [only, setOnly] = useState('all');
  const [top, setTop] = useState(0);
  const [rows, setRows] = useState(new Uint32Array());
  const [sorting, setSorting] = useState(false);
  useEffect(() => {
    let current = true;
    const kept = filtered(selection, values, layer, only);
    if (order === 'place' || !kept.length) { setRows(kept); setSorting(false); return undefined; }
    setSorting(true);
    sortedRows(kept, values, order).then(found => { if (current) { setRows(found); setSorting(false); } });
    return () => { current = false; };
  }, [values, order, layer, only, only === 'all' ? 0 : turn]);
  const place = at => {
    let low = 0;
    let high = selection.starts.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (selection.starts[middle] <= at) low = middle; else high = middle - 1;
    }
    return [low, at - selection.starts[low]];
  };
  const jump = event => {
    event.preventDefault();
    const [wantedLayer, wanted] = new FormData(event.target).get('place').split(/[^0-9]+/).filter(Boolean).map(Number);
    if (wantedLayer < selection.sizes.length && wanted < selection.sizes[wantedLayer]) setFocus([wantedLayer, wanted]);
  };
  const tall = Math.min(TALLEST, rows.length * ROW);
  const last = Math.max(0, rows.length - SEEN);
  const first = Math.min(last, Math.floor(tall < TALLEST ? top / ROW : top / (tall - SEEN * ROW) * last));
  return html`<section aria-label="Table of neurons">
    <div class="row">
      <label>Order <select value=${order} onChange=${event => setOrder(event.target.value)}>
        <option value="lowest">lowest first</option><option value="highest">highest first</option><option value="place">as in the model</option></select></label>
      <label>Layer <select value=${layer} onChange=${event => setLayer(event.target.value)}>
        <option value="">all</option>${selection.sizes.map((_, index) => html`<option value=${index}>${index}</option>`)}</select></label>
      <label>Show <select value=${only} onChange=${event => setOnly(event.target.value)}>
        <option value="all">all</option><option value="chosen">the chosen</option><option value="kept">the others</option></select></label>
      <form class="row" onSubmit=${jump}><label>Go to <input name="place" size="8" placeholder="3, 17" aria-label="Layer and neuron to go to" /></label><button>Go</button></form>
      <span role="status">${sorting ? 'sorting …' : `${number(rows.length)} neurons`}</span>
    </div>
    <div class="rows" tabindex="0" role="region" aria-label="Neurons in order" onScroll=${event => setTop(event.target.scrollTop)}>
      <div class="all" style=${{ height: `${tall}px` }}>
        <table style=${{ transform: `translateY(${tall < TALLEST ? first * ROW : Math.min(top, tall - SEEN * ROW)}px)` }}>
          <thead class="unseen"><tr><th scope="col">chosen</th><th scope="col">neuron</th><th scope="col">value</th></tr></thead>
          <tbody>${Array.from(rows.subarray(first, first + SEEN + 1), at => {
            const [own, neuron] = place(at);
            return html`<tr key=${at}>
              <td><input type="checkbox" checked=${Boolean(selection.chosen[at])} aria-label="Choose layer ${own}, neuron ${neuron}"
                onChange=${() => { selection.edit(next => { next[at] ^= 1; }); edited(); }} /></td>
              <td><button class="link" onClick=${() => setFocus([own, neuron])}>layer ${own}, neuron ${neuron}</button></td>
              <td>${number(values[at])}</td></tr>`;
          })}</tbody>
        </table>
      </div>
    </div>
  </section>`;
}
