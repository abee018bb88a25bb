/**
 * Judges receipts by verify.js, many in one process: each line of the standard input is {"trust", "data"}, the data in
 * base64; each line of the output is {"valid", "complete", "failed", "steps": [[id, status]], "internal"}.
 */

import { createInterface } from "node:readline";

import { bls12_381 } from "@noble/curves/bls12-381.js";

import { verifyReceipt } from "../../shared/pocache/receipt/web/verify.js";

for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  const { trust, data, pairing = true } = JSON.parse(line);
  const options = { bls12_381: pairing ? bls12_381 : null };
  const { valid, complete, failed, steps } = await verifyReceipt(Buffer.from(data, "base64"), trust, options);
  const internal = steps.find((step) => step.isInternal)?.detail ?? null;
  const detail = steps.find((step) => step.status === "failed")?.detail ?? "";
  const answer = { valid, complete, failed, internal, detail, steps: steps.map((step) => [step.id, step.status]) };
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
