/**
 * Standard deviation of first weights: GPT-2's 0.02 belongs to its width of 768; narrower layers need larger weights to
 * keep the same scale of activations (LeCun et al. 1998: 1 / sqrt(width)), and learn visibly faster with them.
 */
export function initialStd(width: number): number {
  return 0.02 * Math.sqrt(Math.max(1, 768 / width));
}
