import test from "ava";
import { isCredentialRefused } from "#agent/transport/dial.js";

test("only a word about the credential itself counts as its refusal", (t) => {
  for (const code of ["AUTHORIZATION_VIOLATION", "AUTHENTICATION_EXPIRED", "BAD_CREDS"]) {
    t.true(isCredentialRefused({ code }), code);
  }
  for (const code of ["AUTHENTICATION_TIMEOUT", "TIMEOUT", "CONNECTION_REFUSED"]) {
    t.false(isCredentialRefused({ code }), code);
  }
  t.false(isCredentialRefused(new Error("no code")));
});
