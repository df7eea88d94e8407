import { ownRecord } from "#common/domain/own-record.js";
import { namedDevices } from "#common/domain/site.js";
import type { Device } from "#proto/shoal/v1/device.js";
import type { AssignedTask, SiteRound } from "#proto/shoal/v1/device_wire.js";
import type { Round, UpdateTally } from "#proto/shoal/v1/round.js";

const nameOf = (round: Round): string => round.metadata?.name ?? "";
const byAge = (a: Round, b: Round): number =>
  (a.status?.plannedAtMs ?? 0) - (b.status?.plannedAtMs ?? 0) || (nameOf(a) < nameOf(b) ? -1 : 1);

/**
 * Whether devices may work on a round. One that is planned again for replacements still takes the work of those it has,
 * so nobody drops his task for the moment that the planning lasts. In an asynchronous job later rounds take what comes of a folded one.
 */
export function isOpen(round: Round): boolean {
  const phase = round.status?.phase;
  if (round.status?.awaitsStragglers === true) return true;
  return phase === "Training" || (phase === "Planning" && (round.status?.assignments.length ?? 0) > 0);
}

/** The tally of a round, not of an earlier one of its name. */
const tallyOf = (round: Round, tallies: ReadonlyMap<string, UpdateTally>): UpdateTally | undefined =>
  ownRecord(round, tallies.get(nameOf(round)));

/** Names of the devices that a round still waits for: assigned, not withdrawn, nothing committed. */
export function awaitedDevices(round: Round, tally: UpdateTally | undefined): string[] {
  const status = round.status;
  if (status === undefined || !isOpen(round)) return [];
  const withdrawn = new Set(status.withdrawn.map((exclusion) => exclusion.device));
  const committed = new Set(tally?.verdicts.flatMap(({ manifest }) => (manifest ? namedDevices(manifest) : [])));
  return status.assignments
    .map((assignment) => assignment.device)
    .filter((device) => !withdrawn.has(device) && !committed.has(device));
}

/**
 * Open assignments of a device, oldest first: open rounds that wait for it. None if it drains.
 * @param tallies by name of the round
 */
export function openTasks(
  device: Device | undefined,
  rounds: Iterable<Round>,
  tallies: ReadonlyMap<string, UpdateTally>,
): AssignedTask[] {
  const name = device?.metadata?.name;
  if (name === undefined || device?.spec?.draining === true) return [];
  const open = [...rounds].filter((round) => awaitedDevices(round, tallyOf(round, tallies)).includes(name));
  open.sort(byAge);
  return open.map((round) => ({
    task: round.spec?.task,
    assignment: round.status?.assignments.find((assignment) => assignment.device === name),
    deadlineAtMs: round.status?.deadlineAtMs ?? 0,
  }));
}

/**
 * The open rounds of a gateway's site, oldest first, each with the devices of the site of which nothing counts yet.
 * @param tallies by name of the round
 */
export function siteRounds(
  site: string,
  rounds: Iterable<Round>,
  tallies: ReadonlyMap<string, UpdateTally>,
): SiteRound[] {
  const found = [...rounds].flatMap((round): { round: Round; site: SiteRound }[] => {
    const tally = tallyOf(round, tallies);
    const awaited = new Set(awaitedDevices(round, tally));
    const of = (round.status?.assignments ?? []).filter(({ device, site: at }) => at === site && awaited.has(device));
    const { deadlineAtMs = 0 } = round.status ?? {};
    const found = { task: round.spec?.task, assignments: of, deadlineAtMs, judgedSeq: tally?.lastSeq ?? 0 };
    return of.length === 0 ? [] : [{ round, site: found }];
  });
  return found.sort((a, b) => byAge(a.round, b.round)).map((one) => one.site);
}

/** Devices to nudge when a round changes: those whose assignment opened, changed or was withdrawn. */
export function devicesToNudge(before: Round | undefined, after: Round | undefined): string[] {
  const was = new Set(before === undefined ? [] : awaitedDevices(before, undefined));
  const is = new Set(after === undefined ? [] : awaitedDevices(after, undefined));
  const opened = [...is].filter((device) => !was.has(device));
  const closed = [...was].filter((device) => !is.has(device));
  const planned = before?.status?.plannedAtMs !== after?.status?.plannedAtMs;
  return planned ? [...new Set([...is, ...closed])] : [...opened, ...closed];
}
