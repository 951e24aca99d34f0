// A worker: puts numbers in order beside the page, which stays at hand meanwhile.

addEventListener('message', ({ data: { id, values, sizes, rows, order } }) => {
  if (rows) {
    const sign = order === 'lowest' ? 1 : -1;
    const key = at => Number.isNaN(values[at]) ? Infinity : sign * values[at]; // what is not known comes last
    rows.sort((a, b) => { const one = key(a); const other = key(b); return one < other ? -1 : one > other ? 1 : a - b; });
    postMessage({ id, rows }, [rows.buffer]);
    return;
  }
  const byLayer = values.slice();
  let start = 0;
  for (const size of sizes) {
    byLayer.subarray(start, start + size).sort();
    start += size;
  }
  postMessage({ id, byLayer, whole: values.sort() }, [byLayer.buffer, values.buffer]);
});
