// Numbers, verdicts and errors as the page says them.

import { html } from '/vendor/htm-preact.js';

export const number = value => value === null || value === undefined || Number.isNaN(value) ? '–'
  : Number.isInteger(value) || Math.abs(value) >= 1000 ? Math.round(value).toLocaleString('en') : Number(value).toPrecision(3);
export const signed = value => value === null || value === undefined ? '–' : (value >= 0 ? '+' : '') + number(value);
export const percent = value => value === null || value === undefined ? '–' : `${(100 * value).toFixed(1)} %`;
export const megabytes = value => `${(value / 1e6).toFixed(1)} MB`;

// The thresholds of src/neuronscope/movement.py.
const SAFE = 0.1;
const RISKY = 0.3;
export const verdict = score => score < SAFE ? 'safe' : score <= RISKY ? 'caution' : 'avoid';

export function Problem({ error }) {
  return error && html`<div class="problem" role="alert"><b>${error.message}</b> ${error.details}</div>`;
}

export function Working({ on }) {
  return on && html`<p class="working" role="status"><progress value=${on.share ?? undefined} max="1" aria-label="Progress"></progress> ${on.description}</p>`;
}
