import { createRng } from "#common/domain/rng.js";

/** A State of the Union address. */
export interface Address {
  readonly year: number;
  readonly president: string;
  readonly text: string;
}

/** What one device of the demo holds. */
export interface DemoShard {
  readonly device: string;
  readonly presidents: readonly string[];
  /** Years of the addresses taken, first and last. */
  readonly years: readonly [number, number];
  /** One text an address. */
  readonly texts: readonly string[];
  readonly bytes: number;
}

/** Shards hold between these many bytes: clearly unequal, and none is enough to learn the language from alone. */
const LEAST_BYTES = 15_000;
const MOST_BYTES = 70_000;

/** "William J Clinton" -> "william-j-clinton". */
export function deviceName(president: string): string {
  return president
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .replace(/^-+|-+$/g, "");
}

/** Addresses by president in order of the first address. */
function byPresident(addresses: readonly Address[]): { president: string; addresses: Address[] }[] {
  const groups = new Map<string, Address[]>();
  for (const address of [...addresses].sort((a, b) => a.year - b.year)) {
    const group = groups.get(address.president);
    if (group === undefined) groups.set(address.president, [address]);
    else group.push(address);
  }
  return [...groups].map(([president, own]) => ({ president, addresses: own }));
}

/**
 * Gives every device the addresses of presidents of its own, in the order of history: private, unequal and non-IID
 * (the language of 1790 is not that of 2010). A president is on one device only.
 *
 * @param devices from 1 to the number of presidents
 * @param seed decides how unequal the shards are
 */
export function splitAddresses(addresses: readonly Address[], devices: number, seed: number): DemoShard[] {
  const presidents = byPresident(addresses);
  if (devices < 1 || devices > presidents.length) {
    throw new RangeError(`${devices} devices cannot share ${presidents.length} presidents`);
  }
  const rng = createRng(seed);
  // Evenly spread budgets in random order: unequal under every seed.
  const budgets = rng.shuffle(
    Array.from({ length: devices }, (_, i) => LEAST_BYTES + ((MOST_BYTES - LEAST_BYTES) * (i + 1)) / devices),
  );
  return budgets.map((budget, i) => {
    const from = Math.floor((i * presidents.length) / devices);
    const to = Math.floor(((i + 1) * presidents.length) / devices);
    return takeShard(presidents.slice(from, to), budget);
  });
}

/** Addresses in order until the budget is spent; the last one is cut to fit. */
function takeShard(
  presidents: readonly { president: string; addresses: readonly Address[] }[],
  budget: number,
): DemoShard {
  const taken: Address[] = [];
  let bytes = 0;
  for (const address of presidents.flatMap((group) => group.addresses)) {
    const text = address.text.slice(0, Math.max(0, Math.floor(budget) - bytes));
    if (text === "") break;
    taken.push({ ...address, text });
    bytes += Buffer.byteLength(text);
  }
  const years = taken.map(({ year }) => year);
  return {
    device: deviceName(presidents[0]?.president ?? ""),
    presidents: [...new Set(taken.map(({ president }) => president))],
    years: [Math.min(...years), Math.max(...years)],
    texts: taken.map(({ text }) => text),
    bytes,
  };
}
