import test from "ava";
import fc from "fast-check";
import { createAccount, createUser } from "nkeys.js";
import { API_VERSION, newMeta } from "#common/domain/resources.js";
import { Device, type JoinToken } from "#proto/shoal/v1/device.js";
import { JoinRequest } from "#proto/shoal/v1/device_wire.js";
import {
  decideJoin,
  hashSecret,
  type JoinFacts,
  type JoinVerdict,
  reservedName,
  spendUse,
} from "#services/registry/enrolment.js";
import { isPublicUserKey } from "#services/registry/nkey.js";

const NOW = 1_700_000_000_000;
const KEY = createUser().getPublicKey();
const OTHER_KEY = createUser().getPublicKey();

const token = (fields: Partial<JoinToken> = {}): JoinToken => ({
  apiVersion: API_VERSION,
  kind: "JoinToken",
  metadata: newMeta("token-1"),
  secretSha256: hashSecret("open sesame"),
  expiresAtMs: NOW + 1000,
  usesLeft: 1,
  deviceLabels: { site: "harbour" },
  revoked: false,
  ...fields,
});
const request = (fields: Partial<JoinRequest> = {}): JoinRequest =>
  JoinRequest.fromPartial({ secret: "open sesame", publicKey: KEY, device: "gateway-1", ...fields });
const device = (name: string, publicKey: string): Device =>
  Device.fromPartial({ metadata: newMeta(name), spec: { publicKey, joinTokenId: "token-1" } });
const join = (facts: Partial<JoinFacts>, asked = request(), nowMs = NOW): JoinVerdict =>
  decideJoin({ token: token(), existing: undefined, reserved: undefined, ...facts }, asked, nowMs);
const reasonOf = (verdict: JoinVerdict): string => (verdict.ok ? verdict.action : verdict.refusal.reason);

const REFUSALS: [string, JoinVerdict, string][] = [
  ["an unknown token", join({ token: undefined }), "TokenUnknown"],
  ["a wrong secret", join({}, request({ secret: "open barley" })), "TokenUnknown"],
  ["an empty secret", join({}, request({ secret: "" })), "TokenUnknown"],
  ["a damaged hash", join({ token: token({ secretSha256: "beef" }) }), "TokenUnknown"],
  ["a revoked token", join({ token: token({ revoked: true }) }), "TokenRevoked"],
  ["an expired token", join({}, request(), NOW + 1000), "TokenExpired"],
  ["a used-up token", join({ token: token({ usesLeft: 0 }) }), "TokenUsedUp"],
  ["a name in capitals", join({}, request({ device: "Gateway" })), "InvalidName"],
  ["no name", join({}, request({ device: "" })), "InvalidName"],
  ["a name with a dot, which would be two subject tokens", join({}, request({ device: "a.b" })), "InvalidName"],
  ["a wildcard as name", join({}, request({ device: "*" })), "InvalidName"],
  ["no key", join({}, request({ publicKey: "" })), "InvalidKey"],
  ["an account's key", join({}, request({ publicKey: createAccount().getPublicKey() })), "InvalidKey"],
  ["a bad label", join({}, request({ labels: { "a b": "c" } })), "InvalidLabels"],
  ["a name of another key", join({ existing: device("gateway-1", OTHER_KEY) }), "NameTaken"],
  ["a second name for one use", join({ reserved: device("gateway-0", KEY) }), "KeyTaken"],
];
for (const [what, verdict, reason] of REFUSALS) {
  test(`enrolment refuses ${what}`, (t) => {
    t.is(reasonOf(verdict), reason);
    t.false(verdict.ok);
    if (!verdict.ok) t.true(verdict.refusal.message.length > 10);
  });
}

test("a right token enrols a device, takes one use and gives its labels", (t) => {
  const verdict = join({ token: token({ usesLeft: 3 }) }, request({ labels: { site: "elsewhere", rack: "7" } }));
  if (!verdict.ok || verdict.action !== "Enrol") return t.fail(reasonOf(verdict));
  t.is(verdict.token?.usesLeft, 2);
  t.deepEqual(verdict.device.metadata?.labels, { site: "harbour", rack: "7" });
  t.is(verdict.device.spec?.publicKey, KEY);
  t.is(verdict.device.spec?.joinTokenId, "token-1");
});

test("a token without limits is not written", (t) => {
  const verdict = join({ token: token({ usesLeft: -1 }) });
  if (!verdict.ok || verdict.action !== "Enrol") return t.fail(reasonOf(verdict));
  t.is(verdict.token, undefined);
});

test("a token without an end lets in at any time", (t) => {
  t.is(reasonOf(join({ token: token({ expiresAtMs: 0 }) }, request(), NOW * 10)), "Enrol");
});

test("the same key joins again without a use, also when the token is used up", (t) => {
  t.is(reasonOf(join({ token: token({ usesLeft: 0 }), existing: device("gateway-1", KEY) })), "Rejoin");
});

test("a crash between the reservation and the device costs no second use", (t) => {
  const first = join({});
  if (!first.ok || first.action !== "Enrol" || first.token === undefined) return t.fail(reasonOf(first));
  t.is(first.token.usesLeft, 0);
  const again = join({ token: first.token });
  if (!again.ok || again.action !== "Enrol") return t.fail(reasonOf(again));
  t.is(again.token, undefined);
  const renamed = join({ token: first.token }, request({ device: "gateway-2" }));
  if (!renamed.ok || renamed.action !== "Enrol") return t.fail(reasonOf(renamed));
  t.is(renamed.token?.usesLeft, 0);
  t.is(renamed.token && reservedName(renamed.token, KEY), "gateway-2");
});

test("a removed device does not come back with its old token and key", (t) => {
  const first = join({ token: token({ usesLeft: 5 }) });
  if (!first.ok || first.action !== "Enrol" || first.token === undefined) return t.fail(reasonOf(first));
  const spent = spendUse(first.token, KEY);
  t.is(reasonOf(join({ token: spent })), "DeviceRemoved");
  t.is(spent && spendUse(spent, KEY), undefined);
  t.is(reasonOf(join({ token: spent }, request({ publicKey: OTHER_KEY }))), "Enrol");
});

test("a counted token never enrols more keys than its uses", (t) => {
  const keys = Array.from({ length: 6 }, () => createUser().getPublicKey());
  const attempts = fc.array(fc.record({ key: fc.nat(5), crash: fc.boolean() }), { maxLength: 30 });
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 4 }), attempts, (uses, list) => {
      let stored = token({ usesLeft: uses });
      const devices = new Map<string, Device>();
      for (const { key, crash } of list) {
        const name = `gateway-${key}`;
        const asked = request({ publicKey: keys[key] ?? "", device: name });
        const verdict = join({ token: stored, existing: devices.get(name) }, asked);
        if (!verdict.ok || verdict.action !== "Enrol") continue;
        if (verdict.token !== undefined) stored = verdict.token;
        if (!crash) devices.set(name, verdict.device);
      }
      return devices.size <= uses && stored.usesLeft >= 0;
    }),
  );
  t.pass();
});

test("public user keys are told from everything else as nkeys does", (t) => {
  for (let i = 0; i < 20; i++) t.true(isPublicUserKey(createUser().getPublicKey()));
  fc.assert(
    fc.property(fc.nat(55), fc.constantFrom(...Array.from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567a1 ")), (at, letter) => {
      fc.pre(KEY[at] !== letter);
      return !isPublicUserKey(KEY.slice(0, at) + letter + KEY.slice(at + 1));
    }),
  );
  for (const text of ["", "U", KEY.slice(1), `${KEY}A`, KEY.toLowerCase()]) t.false(isPublicUserKey(text));
});
