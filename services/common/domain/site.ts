import type { Device } from "#proto/shoal/v1/device.js";
import type { StrategySpec } from "#proto/shoal/v1/job.js";
import { MemberUpdate, type UpdateManifest } from "#proto/shoal/v1/round.js";
import { strategyFacts } from "./strategy-table.js";

/** Labels that only a join token gives: they say whose updates a device's word may stand for. */
export const RESERVED_LABELS = "shoal.dev/";
/** Names the site a device belongs to. */
export const SITE_LABEL = `${RESERVED_LABELS}site`;
/** "true" on the gateway of a site. */
export const GATEWAY_LABEL = `${RESERVED_LABELS}gateway`;

/** The site of a device; empty if it has none. */
export function siteOf(device: Device | undefined): string {
  return device?.metadata?.labels[SITE_LABEL] ?? "";
}

/** The site whose updates a device may fold; undefined if it is no gateway. */
export function gatewaySiteOf(device: Device | undefined): string | undefined {
  const site = siteOf(device);
  return site !== "" && device?.metadata?.labels[GATEWAY_LABEL] === "true" ? site : undefined;
}

/** Whether a commit is a gateway's, for devices of its site. */
export function isSiteUpdate(manifest: Pick<UpdateManifest, "members" | "site">): boolean {
  return manifest.site !== "" || manifest.members.length > 0;
}

/** Devices whose work is in an update: its own device, or those that its gateway folded. */
export function countedDevices(manifest: UpdateManifest): string[] {
  if (!isSiteUpdate(manifest)) return [manifest.device];
  return manifest.members.filter(({ refusal }) => refusal === "").map(({ device }) => device);
}

/** Every device that an update speaks of, those that its gateway refused included. */
export function namedDevices(manifest: UpdateManifest): string[] {
  return isSiteUpdate(manifest) ? manifest.members.map(({ device }) => device) : [manifest.device];
}

/** Devices of which an update brings values: those that were to evaluate only are not among them. */
export function trainedDevices(manifest: UpdateManifest): number {
  if (!isSiteUpdate(manifest)) return 1;
  return manifest.members.filter(({ refusal, localSteps }) => refusal === "" && localSteps > 0).length;
}

/** What single devices say in an update, under the names of their own manifests. */
export function memberUpdates(manifest: UpdateManifest): MemberUpdate[] {
  return isSiteUpdate(manifest) ? manifest.members.filter(({ refusal }) => refusal === "") : [memberOf(manifest, 0, 0)];
}

/** What a gateway says of a device's update. */
export function memberOf(manifest: UpdateManifest, commitSeq: number, norm: number): MemberUpdate {
  const { device, digest, sizeBytes, tokens, localSteps, trainLoss, evalLossSum, evalTokens } = manifest;
  const { bytesDown, fetchMs, trainMs } = manifest;
  const work = { device, digest, sizeBytes, tokens, localSteps, trainLoss, evalLossSum, evalTokens };
  return MemberUpdate.fromPartial({ ...work, bytesDown, fetchMs, trainMs, commitSeq, norm });
}

/** The figures of a site's update that follow from its members'. */
export type SiteSummary = Pick<UpdateManifest, "tokens" | "localSteps" | "trainLoss" | "evalLossSum" | "evalTokens">;

/**
 * What the members come to: sums of tokens and held-out losses, the training loss weighted by tokens, the most local steps.
 * Gateway and aggregator add up in the order of the members, so they get the same bits.
 */
export function summariseMembers(members: readonly MemberUpdate[]): SiteSummary {
  const sums = { tokens: 0, localSteps: 0, evalLossSum: 0, evalTokens: 0 };
  let lossTokens = 0;
  for (const member of members) {
    if (member.refusal !== "") continue;
    lossTokens += member.trainLoss * member.tokens;
    sums.tokens += member.tokens;
    sums.localSteps = Math.max(sums.localSteps, member.localSteps);
    sums.evalLossSum += member.evalLossSum;
    sums.evalTokens += member.evalTokens;
  }
  return { ...sums, trainLoss: sums.tokens > 0 ? lossTokens / sums.tokens : 0 };
}

/**
 * How a gateway weighs the updates of its site in their mean; empty if it must not fold them: a rule that compares updates,
 * or bounds each one's norm, needs every one by itself.
 */
export function siteWeighting(strategy: StrategySpec | undefined): string {
  if (strategy === undefined || strategy.normBound > 0) return "";
  return strategyFacts(strategy.name)?.mean === true ? strategy.weighting : "";
}
