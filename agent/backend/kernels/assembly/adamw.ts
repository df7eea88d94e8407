/**
 * AdamW (Loshchilov and Hutter 2019) over one stretch of the vectors, all in one pass; the factors are those of
 * optimizer-step.ts: m <- beta1 m + intoM g, v <- beta2 v + intoV g^2, w <- kept w - rate m / (sqrt(v) + eps).
 */
export function adamw(
  weights: usize,
  m: usize,
  v: usize,
  gradient: usize,
  count: i32,
  beta1: f32,
  intoM: f32,
  beta2: f32,
  intoV: f32,
  rate: f32,
  eps: f32,
  kept: f32,
): void {
  const bytes = (<usize>count) << 2;
  const wide = (<usize>(count & ~3)) << 2;
  const beta1s = f32x4.splat(beta1);
  const intoMs = f32x4.splat(intoM);
  const beta2s = f32x4.splat(beta2);
  const intoVs = f32x4.splat(intoV);
  const rates = f32x4.splat(rate);
  const epsilons = f32x4.splat(eps);
  const kepts = f32x4.splat(kept);
  let at: usize = 0;
  for (; at < wide; at += 16) {
    const g = v128.load(gradient + at);
    const nextM = f32x4.add(f32x4.mul(v128.load(m + at), beta1s), f32x4.mul(g, intoMs));
    const nextV = f32x4.add(f32x4.mul(v128.load(v + at), beta2s), f32x4.mul(f32x4.mul(g, intoVs), g));
    const change = f32x4.mul(f32x4.div(nextM, f32x4.add(f32x4.sqrt(nextV), epsilons)), rates);
    v128.store(m + at, nextM);
    v128.store(v + at, nextV);
    v128.store(weights + at, f32x4.sub(f32x4.mul(v128.load(weights + at), kepts), change));
  }
  for (; at < bytes; at += 4) {
    const g = load<f32>(gradient + at);
    const nextM = load<f32>(m + at) * beta1 + g * intoM;
    const nextV = load<f32>(v + at) * beta2 + g * intoV * g;
    const change = (nextM / (Mathf.sqrt(nextV) + eps)) * rate;
    store<f32>(m + at, nextM);
    store<f32>(v + at, nextV);
    store<f32>(weights + at, load<f32>(weights + at) * kept - change);
  }
}
