/**
 * SGD with heavy ball (Sutskever et al. 2013) over one stretch of the vectors: m <- momentum m + whole, w <- w - lr m with
 * whole = scale g + correction + decay w. A place of 0 stands for a vector that is not there.
 */
export function sgd(
  weights: usize,
  m: usize,
  gradient: usize,
  correction: usize,
  count: i32,
  scale: f32,
  decay: f32,
  momentum: f32,
  lr: f32,
): void {
  const bytes = (<usize>count) << 2;
  const wide = (<usize>(count & ~3)) << 2;
  const scales = f32x4.splat(scale);
  const decays = f32x4.splat(decay);
  const momenta = f32x4.splat(momentum);
  const rates = f32x4.splat(lr);
  let at: usize = 0;
  for (; at < wide; at += 16) {
    const w = v128.load(weights + at);
    let next = f32x4.mul(v128.load(gradient + at), scales);
    if (correction != 0) next = f32x4.add(next, v128.load(correction + at));
    if (decay != 0) next = f32x4.add(next, f32x4.mul(w, decays));
    if (m != 0) {
      next = f32x4.add(f32x4.mul(v128.load(m + at), momenta), next);
      v128.store(m + at, next);
    }
    v128.store(weights + at, f32x4.sub(w, f32x4.mul(next, rates)));
  }
  for (; at < bytes; at += 4) {
    const w = load<f32>(weights + at);
    let next = load<f32>(gradient + at) * scale;
    if (correction != 0) next += load<f32>(correction + at);
    if (decay != 0) next += w * decay;
    if (m != 0) {
      next = load<f32>(m + at) * momentum + next;
      store<f32>(m + at, next);
    }
    store<f32>(weights + at, w - next * lr);
  }
}
