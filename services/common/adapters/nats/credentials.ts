import { createHash } from "node:crypto";
import { setTimeout } from "node:timers/promises";
import { Algorithms, decode, encodeAccount, encodeOperator, encodeUser, fmtCreds } from "@nats-io/jwt";
import { fromSeed } from "@nats-io/nkeys";
import { type NatsConnection, RequestStrategy } from "nats";
import { createAccount, createOperator, createUser } from "nkeys.js";
import { deviceInbox, joinInbox, subjects } from "../../domain/subjects.js";
import { CodedError } from "../coded-error.js";

/** Everything that says who may connect to NATS. The seeds are secrets. */
export interface TrustRoot {
  operatorJwt: string;
  operatorSeed: string;
  systemAccount: string;
  systemAccountJwt: string;
  systemAccountSeed: string;
  /** The account of the services, with JetStream. */
  account: string;
  accountJwt: string;
  accountSeed: string;
  /** Public key of the account of the devices: it reaches the services through imports only. */
  deviceAccount: string;
  /** That account's first JWT; the server holds the current one, with its revocations. */
  deviceAccountJwt: string;
  deviceAccountSeed: string;
  /** Creds text of the user that may change account JWTs. */
  systemCreds: string;
  /** Creds text of Shoal's own services. */
  serviceCreds: string;
}

/** A user's JWT with the seed made for it. */
export interface IssuedUser {
  jwt: string;
  seed: string;
}

interface Keys {
  publicKey: string;
  seed: string;
}

const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
const bytes = (seed: string): Uint8Array => new TextEncoder().encode(seed);
const UNLIMITED = { subs: -1, data: -1, payload: -1 };

function keysOf(pair: { getPublicKey(): string; getSeed(): Uint8Array }): Keys {
  return { publicKey: pair.getPublicKey(), seed: text(pair.getSeed()) };
}

/** A public nkey and its seed for a device; the seed stays where it was made. */
export function createUserKeys(): Keys {
  return keysOf(createUser());
}

/** Whether a text is the public nkey of a user. */
export function isUserPublicKey(key: string): boolean {
  return /^U[A-Z2-7]{55}$/.test(key);
}

/**
 * What crosses from the devices' account to the services': requests and updates one way, nudges the other. An account
 * of their own keeps devices from naming a subject of the services as the reply of a request or of an update: replies
 * stay in the account they came from, where there is no stream and no service.
 */
const CROSSINGS = [
  { name: "join", subject: subjects.joinAll, type: "service" },
  { name: "device", subject: "shoal.d.>", type: "service" },
  { name: "updates", subject: subjects.allUpdates, type: "service" },
  { name: "nudges", subject: "shoal.i.>", type: "stream" },
] as const;

/** New keys: operator, system account, account SHOAL with JetStream, account DEVICES, and the users of the services. */
export function createTrustRoot(): Promise<TrustRoot> {
  return trustRootFor(keysOf(createAccount()));
}

/**
 * New keys for the server of a site that lets in the devices of a fleet with the credentials they have: a device's JWT
 * says by whose key it was signed, and this operator vouches for an account of that key. The site learns no secret of the
 * fleet (its seed is empty) and issues no credentials.
 * @param deviceAccount public key of the fleet's account of devices
 */
export function createSiteTrustRoot(deviceAccount: string): Promise<TrustRoot> {
  return trustRootFor({ publicKey: deviceAccount, seed: "" });
}

async function trustRootFor(devices: Keys): Promise<TrustRoot> {
  const operator = keysOf(createOperator());
  const system = keysOf(createAccount());
  const account = keysOf(createAccount());
  const operatorJwt = await encodeOperator("shoal", bytes(operator.seed), { system_account: system.publicKey });
  const systemAccountJwt = await encodeAccount(
    "SYS",
    system.publicKey,
    { limits: LIMITS },
    { signer: bytes(operator.seed) },
  );
  const accountJwt = await encodeAccount(
    "SHOAL",
    account.publicKey,
    { limits: { ...LIMITS, ...JETSTREAM }, exports: CROSSINGS.map((crossing) => ({ ...crossing })) },
    { signer: bytes(operator.seed) },
  );
  const deviceAccountJwt = await encodeAccount(
    "DEVICES",
    devices.publicKey,
    { limits: LIMITS, imports: CROSSINGS.map((crossing) => ({ ...crossing, account: account.publicKey })) },
    { signer: bytes(operator.seed) },
  );
  return {
    operatorJwt,
    operatorSeed: operator.seed,
    systemAccount: system.publicKey,
    systemAccountJwt,
    systemAccountSeed: system.seed,
    account: account.publicKey,
    accountJwt,
    accountSeed: account.seed,
    deviceAccount: devices.publicKey,
    deviceAccountJwt,
    deviceAccountSeed: devices.seed,
    systemCreds: formatCreds(await issueServiceUser({ accountSeed: system.seed, name: "system" })),
    serviceCreds: formatCreds(await issueServiceUser({ accountSeed: account.seed, name: "services" })),
  };
}

/** Absent limits mean none allowed, not unlimited. */
const LIMITS = { conn: -1, leaf: -1, imports: -1, exports: -1, wildcards: true, ...UNLIMITED };
const JETSTREAM = { mem_storage: -1, disk_storage: -1, streams: -1, consumer: -1 };

/** A user that may do everything in its account. */
export async function issueServiceUser(options: { accountSeed: string; name: string }): Promise<IssuedUser> {
  const user = createUserKeys();
  const jwt = await encodeUser(options.name, user.publicKey, bytes(options.accountSeed), { ...UNLIMITED });
  return { jwt, seed: user.seed };
}

/** The JWT of a device, bound to the nkey it made: it publishes and reads its own subjects only, and no JetStream API. */
export function issueDeviceUser(options: {
  deviceAccountSeed: string;
  device: string;
  publicKey: string;
  /** Unix milliseconds; rounded up to a second. */
  expiresAtMs: number;
}): Promise<string> {
  const { device } = options;
  return encodeUser(
    device,
    options.publicKey,
    bytes(options.deviceAccountSeed),
    {
      ...UNLIMITED,
      pub: { allow: [`shoal.d.${device}.>`, `shoal.u.${device}.>`] },
      sub: { allow: [`shoal.i.${device}.>`, `${deviceInbox(device)}.>`] },
    },
    { exp: Math.ceil(options.expiresAtMs / 1000) },
  );
}

/** A user that can do nothing but ask to join with one token; its text travels inside the join token. */
export async function issueBootstrapUser(options: {
  deviceAccountSeed: string;
  tokenId: string;
  /** Unix milliseconds; 0 never. */
  expiresAtMs: number;
}): Promise<IssuedUser> {
  const user = createUserKeys();
  const jwt = await encodeUser(
    `join-${options.tokenId}`,
    user.publicKey,
    bytes(options.deviceAccountSeed),
    {
      ...UNLIMITED,
      pub: { allow: [`shoal.join.${options.tokenId}`] },
      sub: { allow: [`${joinInbox(options.tokenId)}.>`] },
    },
    options.expiresAtMs === 0 ? {} : { exp: Math.ceil(options.expiresAtMs / 1000) },
  );
  return { jwt, seed: user.seed };
}

/** The text of a creds file. */
export function formatCreds(user: IssuedUser): string {
  return text(fmtCreds(user.jwt, fromSeed(bytes(user.seed))));
}

/** Public key of the user a JWT was issued to. */
export function publicKeyOf(jwt: string): string {
  return decode(jwt).sub;
}

/** Public key of the account that a user's JWT belongs to. */
export function accountOf(jwt: string): string {
  const { iss, nats } = decode<{ issuer_account?: string }>(jwt);
  return nats.issuer_account ?? iss;
}

/** Unix milliseconds at which a JWT expires; undefined for never. */
export function expiryOf(jwt: string): number | undefined {
  const { exp } = decode(jwt);
  return exp === undefined || exp === 0 ? undefined : exp * 1000;
}

/** The part of an account's claims that revocation changes. */
interface AccountClaims {
  revocations?: Record<string, number>;
}

/** Public keys of users, and the Unix milliseconds up to which JWTs issued to them are worth nothing. */
export type Revocations = ReadonlyMap<string, number>;

/** Users that an account's JWT revokes ("*" for all), and the Unix seconds up to which their JWTs are worth nothing. */
export function revokedIn(accountJwt: string): ReadonlyMap<string, number> {
  return new Map(Object.entries(decode<AccountClaims>(accountJwt).nats.revocations ?? {}));
}

/**
 * The account's next JWT: the claims of the newest of these, the revocations of all of them, and these users revoked. A key's
 * latest revocation counts.
 *
 * Servers take the JWT with the later `iat` and, of two of one second, the one they are given; so this one's is later than
 * that of every other even if this clock is behind. No server compares `iat` with its own clock.
 */
export function revokeInAccountJwts(options: {
  /** What the servers hold, and whatever else they may know; at least one. */
  accountJwts: readonly [string, ...string[]];
  operatorSeed: string;
  users: Revocations;
  nowMs: number;
}): string {
  const [first, ...others] = options.accountJwts.map((jwt) => decode<AccountClaims>(jwt));
  if (first === undefined) throw new RangeError("no JWT of the account");
  const newest = others.reduce((best, claims) => (claims.iat >= best.iat ? claims : best), first);
  const revocations = new Map([...options.users].map(([key, atMs]) => [key, Math.floor(atMs / 1000)]));
  for (const jwt of options.accountJwts)
    for (const [key, until] of revokedIn(jwt)) revocations.set(key, Math.max(until, revocations.get(key) ?? 0));
  const nats = { ...newest.nats, revocations: Object.fromEntries(revocations) };
  const iat = Math.max(Math.floor(options.nowMs / 1000), newest.iat + 1);
  return signClaims({ ...newest, nats, iat }, options.operatorSeed);
}

/** A JWT of these claims with their own `iat`, where `encodeAccount` takes that of its clock. */
function signClaims(claims: object, seed: string): string {
  const signer = fromSeed(bytes(seed));
  const unnamed = { ...claims, iss: signer.getPublicKey(), jti: undefined };
  const jti = createHash("sha256").update(JSON.stringify(unnamed)).digest("base64url");
  const encode = (part: Uint8Array): string => Buffer.from(part).toString("base64url");
  const parts = [
    { typ: "JWT", alg: Algorithms.v2 },
    { ...unnamed, jti },
  ];
  const signed = parts.map((part) => encode(bytes(JSON.stringify(part)))).join(".");
  return `${signed}.${encode(signer.sign(bytes(signed)))}`;
}

interface ClaimsReply {
  error?: { code: number; description: string };
}

/** After how long a revocation is looked for once more. */
const SETTLE_MS = 250;

/** How long after one server's answer another's is waited for. */
const STALL_MS = 250;

/**
 * The answers of all servers to a request that each of them answers, or of `enough` of them; empty ones are left out.
 * Throws code "TIMEOUT" if there are none.
 */
async function askServers(system: NatsConnection, subject: string, data = "", enough = Infinity): Promise<string[]> {
  const options = { strategy: RequestStrategy.JitterTimer, maxWait: 5000, jitter: STALL_MS };
  const answers: string[] = [];
  for await (const message of await system.requestMany(subject, data, options)) {
    if (message.data.length > 0) answers.push(message.string());
    if (answers.length >= enough) break;
  }
  if (answers.length === 0) throw new CodedError("TIMEOUT", `no nats-server answers on ${subject}`);
  return answers;
}

/**
 * Revokes users at the servers, which close their connections. Several replicas may revoke at once: what is pushed is
 * looked up again until every server that answers holds it. Throws code "REVOCATION_REFUSED" if one does not take it,
 * "TIMEOUT" if none answers.
 *
 * A push replaces what every server holds, and one that was down while a user was revoked lacks that user until the servers
 * compare their stores, which they do every two minutes: so what is pushed is made of the answers of all.
 *
 * @param system a connection with the system user's creds
 */
export async function revokeUsers(
  system: NatsConnection,
  keys: Pick<TrustRoot, "deviceAccount" | "deviceAccountJwt" | "operatorSeed">,
  users: Revocations,
): Promise<void> {
  const lookUp = `$SYS.REQ.ACCOUNT.${keys.deviceAccount}.CLAIMS.LOOKUP`;
  // A key that was revoked before and has joined again holds a newer JWT: only a revocation of now covers it.
  const isHeldBy = (jwt: string): boolean => {
    const revoked = revokedIn(jwt);
    return [...users].every(([key, atMs]) => (revoked.get(key) ?? 0) >= Math.floor(atMs / 1000));
  };
  let isSettled = false;
  for (let attempt = 0; attempt < 20; attempt += 1) {
    const answers = await askServers(system, lookUp);
    if (answers.every(isHeldBy)) {
      if (isSettled) return;
      // Whoever looked up before this one pushed may push without it now.
      isSettled = true;
      await setTimeout(SETTLE_MS);
      continue;
    }
    isSettled = false;
    // What others pushed while the last answer was waited for is at every server: the first to answer will do.
    const latest = await askServers(system, lookUp, "", 1);
    const next = revokeInAccountJwts({
      // A server that starts takes the one in its configuration unless what it holds is newer.
      accountJwts: [keys.deviceAccountJwt, ...answers, ...latest],
      operatorSeed: keys.operatorSeed,
      users,
      nowMs: Date.now(),
    });
    for (const reply of await askServers(system, "$SYS.REQ.CLAIMS.UPDATE", next, answers.length)) {
      const { error } = JSON.parse(reply) as ClaimsReply;
      if (error !== undefined)
        throw new CodedError("REVOCATION_REFUSED", `nats-server refused the account: ${error.description}`);
    }
  }
  throw new CodedError("REVOCATION_REFUSED", "nats-server did not keep the revocation after 20 attempts");
}
