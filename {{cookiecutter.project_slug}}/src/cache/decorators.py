"""`@cached` and `@invalidate_cache`, for any `async def` function or method."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from src.cache.engine.after_commit import invalidate_after_commit, open_transactions, watch_commits
from src.cache.engine.cache import current_cache
from src.cache.engine.codec import codec_for
from src.cache.engine.keys import Arguments, Template, shorten
from src.cache.engine.policy import Policy

P = ParamSpec("P")
T = TypeVar("T")

Function = Callable[P, Awaitable[T]]


def cached(
    ttl: float | None = None,
    key_prefix: str | None = None,
    key: str | Callable[..., str] | None = None,
    *,
    tags: Sequence[str] = (),
    stale: float = 0,
    jitter: float = 0.1,
) -> Callable[[Function[P, T]], Function[P, T]]:
    """Return a call's value from the cache if it has been made with these arguments before.

    The key is the prefix (the function's full name unless given) and the arguments; or it is `key`,
    a template such as `"user:{user_id}"` or a function of the same arguments. `tags` are templates.
    A value lives for `ttl` seconds (CACHE_TTL_SECONDS unless given), less up to `jitter` of that;
    for `stale` seconds more it is returned while it is refreshed in the background.
    Raises TypeError, when it decorates, if calls make no key or values cannot be cached.
    """

    def decorate(function: Function[P, T]) -> Function[P, T]:
        arguments = Arguments(function)
        name, codec = key_prefix or function.__qualname__, codec_for(function)
        policy: Policy[T] = Policy(name, codec, ttl=ttl, stale=stale, jitter=jitter)
        unrefreshed: Policy[T] = Policy(name, codec, ttl=ttl, jitter=jitter)  # with a session
        key_of = key_maker(function, arguments, key_prefix, key)
        tag_templates = [Template(tag, arguments) for tag in tags]
        _check_stale(function, arguments, stale)

        @functools.wraps(function)
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            if (cache := current_cache()) is None:
                return await function(*args, **kwargs)
            values = arguments.bind(args, kwargs)
            named_tags = [template.fill(values) for template in tag_templates]
            call = functools.partial(function, *args, **kwargs)
            chosen = unrefreshed if stale and _sessions_of(args, kwargs) else policy
            return await cache.fetch(chosen, key_of(args, kwargs, values), named_tags, call)

        return wrapper

    return decorate


def _check_stale(function: Callable[..., Any], arguments: Arguments, stale: float) -> None:
    if stale and arguments.excluded:
        raise TypeError(
            f"{function.__qualname__} cannot be refreshed in the background:"
            f" `{arguments.excluded[0]}` ends with the request; open what it needs inside"
        )


def key_maker(
    function: Callable[..., Any],
    arguments: Arguments,
    prefix: str | None,
    key: str | Callable[..., str] | None,
) -> Callable[[tuple[Any, ...], dict[str, Any], tuple[Any, ...]], str]:
    """Return what makes a call's key from its arguments, given and bound, or raise TypeError."""
    if key is None:
        arguments.check()
        head = f"{prefix or f'{function.__module__}.{function.__qualname__}'}:"
        return lambda _args, _kwargs, values: shorten(head + arguments.key(values))
    head = f"{prefix}:" if prefix else ""
    if callable(key):
        return lambda args, kwargs, _values: shorten(head + key(*args, **kwargs))
    template = Template(key, arguments)
    return lambda _args, _kwargs, values: shorten(head + template.fill(values))


def invalidate_cache(
    key_pattern: str | None = None, *, tags: Sequence[str] = ()
) -> Callable[[Function[P, T]], Function[P, T]]:
    """Once the call has succeeded, invalidate what it has outdated.

    `key_pattern` is a key or a pattern (`*`, `?`, `[ab]`); it and the tags may name arguments:
    `"user:{user_id}:*"`. In a database transaction this happens right after the commit, and not
    at all if the transaction is rolled back.
    """
    if key_pattern is None and not tags:
        raise TypeError("invalidate_cache() needs a key_pattern or tags")

    def decorate(function: Function[P, T]) -> Function[P, T]:
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"{function.__qualname__} is no `async def` function")
        arguments = Arguments(function)
        patterns = [Template(key_pattern, arguments)] if key_pattern else []
        tag_templates = [Template(tag, arguments) for tag in tags]

        @functools.wraps(function)
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            values = arguments.bind(args, kwargs)
            key_patterns = [pattern.fill(values) for pattern in patterns]
            named_tags = [template.fill(values) for template in tag_templates]
            with watch_commits() as commits:
                result = await function(*args, **kwargs)
            sessions = open_transactions(_sessions_of(args, kwargs))
            # It may have committed by itself, and then begun another transaction.
            now = bool(commits) or not sessions
            await _invalidate(key_patterns, named_tags, sessions, now=now)
            return result

        return wrapper

    return decorate


async def invalidate(
    *key_patterns: str, tags: Sequence[str] = (), session: AsyncSession | None = None
) -> None:
    """Invalidate keys, what matches patterns and what carries tags, as `@invalidate_cache` does."""
    sessions = open_transactions([session.sync_session] if session else [])
    await _invalidate(key_patterns, tags, sessions, now=not sessions)


async def _invalidate(
    key_patterns: Sequence[str], tags: Sequence[str], sessions: Sequence[Session], *, now: bool
) -> None:
    cache = current_cache()
    if cache is None:
        return
    for session in sessions:
        invalidate_after_commit(session, cache.invalidate, key_patterns, tags)
    if now:
        await cache.invalidate(*key_patterns, tags=tags)


def _sessions_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Session]:
    """Return the sessions that a call is made with, those of a method's object included."""
    attributes = getattr(args[0], "__dict__", {}) if args else {}
    values = (*args, *kwargs.values(), *attributes.values())
    return [value.sync_session for value in values if isinstance(value, AsyncSession)]
