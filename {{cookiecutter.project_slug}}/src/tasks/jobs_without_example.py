"""Your tasks. docs/tasks.md explains what a task can rely on.

A task is a function with `@dramatiq.actor`; `transaction` comes from `src.tasks.context`:

    @dramatiq.actor(actor_name="send_welcome", queue_name="default", max_retries=3)
    async def send_welcome(user_id: str) -> None:
        async with transaction() as db:
            await WelcomeService.send(db, UUID(user_id))

An endpoint enqueues it in its transaction; `enqueue` comes from `src.tasks`:

    await enqueue(db, send_welcome, str(user.id))
"""
