// The official npm client against a gateway: whole answers, streams, errors. Prints one JSON object.
import OpenAI from "openai";

const [baseURL, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];
const found = {};

found.models = (await client.models.list()).data.map((one) => one.id);

const { data, response } = await client.chat.completions
  .create({ model, messages, max_completion_tokens: 8, temperature: 0 })
  .withResponse();
found.whole = { text: data.choices[0].message.content, usage: data.usage, pocache: data.pocache };
found.header = response.headers.get("x-pocache-job");

const stream = await client.chat.completions.create({
  model,
  messages,
  max_tokens: 8,
  temperature: 0,
  stream: true,
  stream_options: { include_usage: true },
});
found.streamed = "";
for await (const chunk of stream) {
  found.streamed += chunk.choices[0]?.delta.content ?? "";
  found.usage = chunk.usage ?? found.usage;
  found.pocache = chunk.pocache ?? found.pocache;
  found.finish = chunk.choices[0]?.finish_reason ?? found.finish;
}

const plain = await client.completions.create({ model, prompt: "Hello", max_tokens: 4, temperature: 0 });
found.plain = plain.choices[0].text;

const scored = { model, messages, max_tokens: 8, temperature: 0, logprobs: true };
found.logprobs = (await client.chat.completions.create(scored)).choices[0].logprobs.content;
found.streamedLogprobs = [];
for await (const chunk of await client.chat.completions.create({ ...scored, stream: true })) {
  found.streamedLogprobs.push(...(chunk.choices[0]?.logprobs?.content ?? []));
}
const listed = await client.completions.create({ model, prompt: "Hello", max_tokens: 4, temperature: 0, logprobs: 0 });
found.plainLogprobs = listed.choices[0].logprobs;

found.errors = {};
for (const [name, options] of Object.entries({
  n: { n: 2 },
  model: { model: "no-such-model" },
  top_logprobs: { logprobs: true, top_logprobs: 3 },
})) {
  try {
    await client.chat.completions.create({ model, messages, max_tokens: 4, ...options });
  } catch (error) {
    found.errors[name] = [error.constructor.name, error.status, error.code, error.param];
  }
}
try {
  await new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list();
} catch (error) {
  found.errors.key = [error.constructor.name, error.status, error.code, error.param ?? null];
}
console.log(JSON.stringify(found));
