// The round of xxHash (Yann Collet, XXH32), in sixteen lanes of 32 bits instead of four.
const PRIME_1: i32 = 0x9e3779b1;
const PRIME_2: i32 = 0x85ebca77;
const PRIME_3: i32 = 0xc2b2ae3d;
/** Four lanes of four words. */
const BLOCK_BYTES: usize = 64;

@inline
function round(lane: v128, word: v128): v128 {
  const sum = i32x4.add(lane, i32x4.mul(word, i32x4.splat(PRIME_2)));
  return i32x4.mul(v128.or(i32x4.shl(sum, 13), v128.shr<u32>(sum, 19)), i32x4.splat(PRIME_1));
}

/** One round over one lane. */
export function mix(hash: u32, word: u32): u32 {
  return rotl<u32>(hash + word * PRIME_2, 13) * PRIME_1;
}

@inline
function mixFour(hash: u32, lanes: v128): u32 {
  hash = mix(hash, i32x4.extract_lane(lanes, 0));
  hash = mix(hash, i32x4.extract_lane(lanes, 1));
  hash = mix(hash, i32x4.extract_lane(lanes, 2));
  return mix(hash, i32x4.extract_lane(lanes, 3));
}

/** 32 bits of so many bytes, which are followed by room for BLOCK_BYTES more. */
export function checksum(src: usize, bytes: i32): u32 {
  const end = src + <usize>bytes;
  memory.fill(end, 0, BLOCK_BYTES);
  let a = i32x4.splat(0);
  let b = i32x4.splat(0);
  let c = i32x4.splat(0);
  let d = i32x4.splat(0);
  for (; src < end; src += BLOCK_BYTES) {
    a = round(a, v128.load(src));
    b = round(b, v128.load(src, 16));
    c = round(c, v128.load(src, 32));
    d = round(d, v128.load(src, 48));
  }
  let hash = <u32>bytes;
  hash = mixFour(hash, a);
  hash = mixFour(hash, b);
  hash = mixFour(hash, c);
  hash = mixFour(hash, d);
  // The last steps of XXH32, by which every bit of the hash depends on every other.
  hash = (hash ^ (hash >> 15)) * PRIME_2;
  hash = (hash ^ (hash >> 13)) * PRIME_3;
  return hash ^ (hash >> 16);
}
