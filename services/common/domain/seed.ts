/**
 * A 32-bit seed derived from another one and names or numbers, so that every round and device has its own and the same
 * one on every replica. FNV-1a over the UTF-16 units, finished with the murmur3 mixer. Not for secrets.
 */
export function deriveSeed(seed: number, ...parts: readonly (string | number)[]): number {
  let hash = (0x811c9dc5 ^ seed) >>> 0;
  const text = parts.map((part) => `${String(part)}\u0000`).join("");
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193) >>> 0;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}
