// What the model says without the chosen neurons: an estimate at once, then the exact value; and what to do with them.

import { html, useEffect, useRef, useState } from '/vendor/htm-preact.js';
import { floats, job } from '/api.js';
import { megabytes, number, percent, Problem, signed, verdict, Working } from '/words.js';

const WAIT_MS = 300;
const FIRST = 'import os\nimport sys\n\ndef main(argv):\n    path = os.path.join(argv[1], "data")';

export const textsOf = text => text.split(/\n\s*\n\s*\n/).filter(part => part.trim());

export function Simulation({ card, selection, turn, edited, changed, turnTo, latency, text, setText }) {
  const [ablation, setAblation] = useState('zero');
  const [found, setFound] = useState(null);
  const [working, setWorking] = useState(null);
  const [problem, setProblem] = useState(null);
  const [made, setMade] = useState(null);
  const [name, setName] = useState('');
  const [firstOrder, setFirstOrder] = useState(null);
  const [estimate, setEstimate] = useState(null);
  const asked = useRef(false);
  const count = selection.count;
  const question = JSON.stringify([turn, text, ablation]);
  const old = Boolean(working) || found?.question !== question;
  useEffect(() => {
    if (!count || asked.current) return;
    asked.current = true; // once a model: the server keeps it
    floats('/api/neurons.bin?metric=first-order').then(setFirstOrder, () => {});
  }, [turn]);
  useEffect(() => { // an effect: the map is drawn before
    let sum = 0;
    for (let at = 0; firstOrder && at < firstOrder.length; at++) sum += selection.chosen[at] * firstOrder[at];
    setEstimate(firstOrder && count ? sum : null);
  }, [turn, firstOrder]);
  useEffect(() => {
    setMade(null);
    if (!count) { setFound(null); setWorking(null); setProblem(null); return undefined; }
    const stop = new AbortController();
    setWorking({ description: 'waiting', share: null });
    const timer = setTimeout(async () => {
      const body = { neurons: selection.sent(), ablation, continuations: card.writes ? 16 : 0 };
      if (text.trim()) body.input_texts = textsOf(text);
      try {
        const result = await job('/api/pruning/simulate', body, { signal: stop.signal, progress: setWorking });
        if (!stop.signal.aborted) { setFound({ ...result, question }); setProblem(null); setWorking(null); }
      } catch (error) {
        if (error.name !== 'AbortError') { setProblem(error); setWorking(null); }
      }
    }, WAIT_MS);
    return () => { clearTimeout(timer); stop.abort(); };
  }, [turn, text, ablation, card]);
  const suggest = async () => {
    setWorking({ description: 'looking for the largest safe set', share: null });
    const body = { threshold: 0.1, ablation };
    if (text.trim()) body.input_texts = textsOf(text);
    try {
      const safe = await job('/api/pruning/safe-set', body, { progress: setWorking });
      selection.put(safe.neurons);
      edited();
    } catch (error) { setProblem(error); }
    setWorking(null);
  };
  const apply = async () => {
    setWorking({ description: 'removing, repairing, verifying', share: null });
    try {
      setMade(await job('/api/pruning/apply', { neurons: selection.sent(), effort: 'low', ...(name.trim() && { name }) }, { progress: setWorking }));
      changed();
    } catch (error) { setProblem(error); }
    setWorking(null);
  };
  const metrics = found?.metrics;
  const left = latency && 1 - latency.neuron_shares.reduce((sum, share, layer) => sum + share * selection.counts[layer], 0);
  return html`<section aria-label="Without the chosen neurons">
    <h2>${count ? `Without ${number(count)} of them` : 'What if some were gone?'}</h2>
    <${Problem} error=${problem} />
    ${!count && html`<p class="empty">Choose neurons on the map, and see at once what the model says without them.</p>`}
    ${working && estimate !== null && html`<p class="estimate">First-order estimate: the loss moves by at most ${number(estimate)} nats. The exact value follows.</p>`}
    ${found && html`<div class=${old ? 'result old' : 'result'} aria-busy=${old}>
      <p class="score ${verdict(found.impact_score)}"><b>${found.impact_score.toFixed(3)}</b> <span>${verdict(found.impact_score)}</span>
        <small>exact impact, from 0 to 1; safe below 0.1</small></p>
      <dl>
        <dt>loss, nats</dt><dd>${signed(metrics.loss_change)}</dd>
        <dt>KL divergence, nats</dt><dd>${number(metrics.kl)}</dd>
        <dt>first choices that stay</dt><dd>${percent(metrics.top1_agreement)}</dd>
        <dt>parameters</dt><dd>${number(found.saved.parameters_before)} → ${number(found.saved.parameters_after)}</dd>
        ${latency && html`<dt>one forward, estimated</dt><dd>${number(latency.latency_ms)} → ${number(latency.latency_ms * left)} ms</dd>`}
        <dt>size</dt><dd>${megabytes(card.bytes)} → ${megabytes(card.bytes - found.saved.bytes_saved)}</dd>
      </dl>
      ${found.continuations?.map(one => html`<div class="says">
        <p>${one.text.length > 160 ? '…' : ''}${one.text.slice(-160)}</p>
        <p><b>with</b> <code>${one.before}</code></p>
        <p><b>without</b> <code class=${one.before === one.after ? '' : 'other'}>${one.after}</code></p>
      </div>`)}
    </div>`}
    <${Working} on=${working} />
    <div class="row">
      <label>Instead of them <select value=${ablation} onChange=${event => setAblation(event.target.value)}>
        <option value="zero">nothing</option><option value="mean">their mean</option><option value="repaired">what the others tell</option>
      </select></label>
      <button onClick=${suggest} disabled=${Boolean(working)}>Choose the largest safe set</button>
    </div>
    <div class="row">
      <label>Name <input value=${name} maxlength="200" placeholder="of the smaller model" onInput=${event => setName(event.target.value)} /></label>
      <button class="main" onClick=${apply} disabled=${!count || Boolean(working)}>Make the smaller model</button>
    </div>
    ${made && html`<p class="made" role="status">Made, ${made.verification.passed} of ${made.verification.total} checks passed:
      <a href=${made.download}>download</a>, <a href=${made.report} target="_blank" rel="noopener">report</a>, <button class="link" onClick=${() => turnTo(made.model_name)}>look at it</button>. The model here is as it was; the new one is under Models, to be fine-tuned too.</p>`}
    ${card.reads === 'texts' && html`<label class="block">Texts to try it with (two empty lines between them)
      <textarea rows="5" spellcheck="false" value=${text} onInput=${event => setText(event.target.value)}></textarea></label>`}
  </section>`;
}

export const firstText = card => card.reads === 'texts' ? FIRST : '';
