"""Tokens do not depend on what ran beside them: log-probabilities are compared bit by bit."""
from concurrent.futures import ThreadPoolExecutor

PROMPTS = [f"{beginning} {i}" for i in range(8) for beginning in (
    "The capital of France is", "Once upon a time, in a land with", "def fibonacci(n):\n    # case",
    "Water boils at a temperature of")]
TOKENS = 12


def ask(server, prompt, i, tokens=TOKENS):
    """(text, log-probabilities); every second one sampled under a seed."""
    choice = server.complete(prompt=prompt, max_tokens=tokens, logprobs=1, ignore_eos=True,
                             temperature=0.8 * (i % 2), seed=i)["choices"][0]
    return choice["text"], choice["logprobs"]["token_logprobs"]


def ask_all(server, prompts=PROMPTS, workers=1, tokens=TOKENS):
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda pair: ask(server, pair[1], pair[0], tokens), enumerate(prompts)))


def test_alone_and_in_a_batch_of_32_and_with_1_and_2_threads(start):
    one = start("--threads", "1")
    alone = ask_all(one, PROMPTS[:12])
    assert ask_all(one, workers=32)[:12] == alone
    one.stop()
    two = start("--threads", "2")
    assert ask_all(two, PROMPTS[:12]) == alone
    assert ask_all(two, workers=32)[:12] == alone


def test_deterministic_under_chunks_preemption_and_cache_hits(start):
    prompts = [f"Chapter {i}. " + "The rain fell on the hills and the river rose. " * 4 for i in range(6)]
    whole = start("--deterministic", "--no-enable-prefix-caching", "--max-model-len", "512", "--kv-cache-dtype",
                  "float32")
    alone = ask_all(whole, prompts, tokens=48)
    whole.stop()

    block_bytes = 2 * 30 * 3 * 64 * 4 * 16  # K and V, layers, KV heads, head size, f32, positions
    tight = start("--deterministic", "--max-model-len", "512", "--max-num-seqs", "8",
                  "--max-num-batched-tokens", "24", "--kv-cache-dtype", "float32", "--kv-cache-memory-bytes", str(34 * block_bytes))
    assert ask_all(tight, prompts, workers=6, tokens=48) == alone
    assert tight.metrics()["vllm:num_preemptions_total"] > 0
    before = tight.metrics()["vllm:prefix_cache_hits_total"]
    again = [ask(tight, prompts[0], 0, 48) for _ in range(2)]
    assert again == [alone[0]] * 2
    assert tight.metrics()["vllm:prefix_cache_hits_total"] > before
