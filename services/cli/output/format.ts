const KIB = 1024;
const BYTE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"] as const;

/** Bytes with a binary unit and three significant digits, e.g. "1.50 MiB". */
export function formatBytes(bytes: number): string {
  if (!Number.isFinite(bytes)) return "-";
  let value = bytes;
  let unit = 0;
  while (Math.abs(value) >= KIB && unit < BYTE_UNITS.length - 1) {
    value /= KIB;
    unit++;
  }
  const digits = unit === 0 ? 0 : Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${BYTE_UNITS[unit] ?? "PiB"}`;
}

/** Milliseconds in the largest two units, e.g. "850ms", "12.3s", "3m05s", "2h14m", "5d02h". */
export function formatDuration(ms: number): string {
  if (!Number.isFinite(ms)) return "-";
  const total = Math.max(0, ms);
  if (total < 1000) return `${Math.round(total)}ms`;
  if (total < 60_000) return `${(Math.floor(total / 100) / 10).toFixed(1)}s`;
  const pad = (n: number): string => String(n).padStart(2, "0");
  const seconds = Math.floor(total / 1000);
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}m${pad(seconds % 60)}s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours}h${pad(minutes % 60)}m`;
  return `${Math.floor(hours / 24)}d${pad(hours % 24)}h`;
}

/** Time since a Unix time in milliseconds; "-" for 0, which means "never" in the resources. */
export function formatAge(atMs: number, nowMs: number): string {
  return atMs === 0 ? "-" : formatDuration(nowMs - atMs);
}

/** A loss in nats with four decimals; "-" when it was not measured. */
export function formatLoss(loss: number | undefined): string {
  return loss === undefined || !Number.isFinite(loss) ? "-" : loss.toFixed(4);
}

/** A count with a decimal unit, e.g. "1.21 M". */
export function formatCount(count: number): string {
  if (count < 10_000) return String(count);
  if (count < 1e6) return `${(count / 1e3).toFixed(1)} k`;
  if (count < 1e9) return `${(count / 1e6).toFixed(2)} M`;
  return `${(count / 1e9).toFixed(2)} G`;
}

/** "k=v,k=v" in order of keys; "-" if there are none. */
export function formatLabels(labels: Readonly<Record<string, string>>): string {
  const pairs = Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1));
  return pairs.length === 0 ? "-" : pairs.map(([key, value]) => `${key}=${value}`).join(",");
}

/** Hours, minutes and seconds (UTC) of a Unix time in milliseconds. */
export function formatTime(atMs: number): string {
  return new Date(atMs).toISOString().slice(11, 19);
}
