"""infinity: our folder served by it (`infinity_emb v2 --model-id FOLDER`, or in a program)."""

import asyncio

from infinity_emb import AsyncEmbeddingEngine, EngineArgs

args = EngineArgs(model_name_or_path="checkpoints/all-MiniLM-L6-v2", device="cpu")
engine = AsyncEmbeddingEngine.from_args(args)


async def main() -> None:
    async with engine:
        (a, b, c), _ = await engine.embed(["He bakes bread.", "A baker.", "She mends watches."])
    print(a @ b > a @ c)  # True


asyncio.run(main())
