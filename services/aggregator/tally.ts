import type { Round, UpdateTally, Verdict } from "#proto/shoal/v1/round.js";
import { MOST_KEPT_REFUSALS, refusalsOf } from "#common/domain/cut-off.js";
import { API_VERSION, newMeta } from "#common/domain/resources.js";
import { countedDevices } from "#common/domain/site.js";

/** A round's tally without verdicts. */
export function emptyTally({ metadata, spec }: Round): UpdateTally {
  const { name = "", uid: roundUid = "" } = metadata ?? {};
  return {
    apiVersion: API_VERSION,
    kind: "UpdateTally",
    metadata: newMeta(name, { job: spec?.job ?? "" }),
    verdicts: [],
    lastSeq: 0,
    failure: undefined,
    roundUid,
  };
}

/** Devices of which an update counts. */
export function acceptedDevices(tally: UpdateTally): Set<string> {
  const devices = new Set<string>();
  for (const { accepted, manifest } of tally.verdicts) {
    if (accepted && manifest) for (const device of countedDevices(manifest)) devices.add(device);
  }
  return devices;
}

/**
 * The tally with one more verdict, which must be of a later commit. Devices that flood the log do not grow it: the last
 * refusal of each says that the rest is refused unseen, and of all devices together so many are kept that the tally fits its store.
 */
export function withVerdict(tally: UpdateTally, verdict: Verdict): UpdateTally {
  const { byDevice, total, most } = refusalsOf(tally);
  const refusals = byDevice.get(verdict.manifest?.device ?? "") ?? 0;
  const kept = verdict.accepted || (refusals < most && total < MOST_KEPT_REFUSALS);
  const isLast = !verdict.accepted && refusals === most - 1;
  const message = `${verdict.message}; further commits of this device are refused unseen`;
  return {
    ...tally,
    verdicts: kept ? [...tally.verdicts, isLast ? { ...verdict, message } : verdict] : tally.verdicts,
    lastSeq: verdict.commitSeq,
  };
}
