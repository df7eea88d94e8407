/** Restricted Damerau-Levenshtein distance: insertions, deletions, substitutions and swaps of neighbours, one each. */
function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1];
      let best = Math.min((last[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1, (last[j - 1] ?? 0) + (same ? 0 : 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        best = Math.min(best, (before[j - 2] ?? 0) + 1);
      row.push(best);
    }
    before = last;
    last = row;
  }
  return last[b.length] ?? 0;
}

/** The known word a misspelt one was probably meant to be; undefined if none is near. Case and separators do not count. */
export function suggest(word: string, known: readonly string[]): string | undefined {
  const fold = (text: string): string => text.toLowerCase().replaceAll(/[-_]/g, "").slice(0, 64);
  const scored = known.map((candidate) => ({ candidate, distance: editDistance(fold(word), fold(candidate)) }));
  const best = scored.reduce<{ candidate: string; distance: number } | undefined>(
    (least, next) => (least === undefined || next.distance < least.distance ? next : least),
    undefined,
  );
  return best !== undefined && best.distance <= Math.max(1, Math.floor(best.candidate.length / 3))
    ? best.candidate
    : undefined;
}

/** "; did you mean X?" where there is a near word, else the list of what is known. */
export function remedyFor(word: string, known: readonly string[]): string {
  const near = suggest(word, known);
  return near === undefined ? `use one of ${known.join(", ")}` : `did you mean "${near}"?`;
}
