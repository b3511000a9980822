"""`@cached` and `@invalidate_cache`, for any `async def` function or method."""

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from src.cache.engine.after_commit import invalidate_after_commit, open_transactions, watch_commits
from src.cache.engine.cache import current_cache
from src.cache.engine.codec import check_function, codec_for
from src.cache.engine.keys import Arguments, Template, check_strings, identity_of, shorten
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
    """Cache the return values of an `async def` function.

    The cache key is `key_prefix` (default: the full name of the function) and the arguments. To
    choose the key, pass `key`: a template such as `"user:{user_id}"`, or a function that takes the
    same arguments and returns the key. `tags` are templates too. Context variables and globals that
    the function reads are not in the key: pass what the value depends on as an argument.

    `ttl` is in seconds (default: CACHE_TTL_SECONDS). It is shortened by a random part of up to
    `jitter * ttl`. After the TTL, the value is returned for another `stale` seconds while it is
    refreshed in the background (stale-while-revalidate).

    Raises TypeError when the function is decorated, if its arguments cannot be part of a key or its
    return values cannot be stored.
    """
    if ttl is not None and not isinstance(ttl, int | float):
        raise TypeError("`ttl` must be a number of seconds. Without arguments, write `@cached()`.")

    def decorate(function: Function[P, T]) -> Function[P, T]:
        codec, arguments = codec_for(function), Arguments(function)
        check_strings(arguments.name, tags=tags)
        name, owner = key_prefix or function.__qualname__, identity_of(function)
        policy: Policy[T] = Policy(name, codec, owner, ttl=ttl, stale=stale, jitter=jitter)
        policy_without_stale: Policy[T] = Policy(name, codec, owner, ttl=ttl, jitter=jitter)
        build_key = key_builder(function, arguments, key_prefix, key)
        tag_templates = [Template(tag, arguments) for tag in tags]
        if stale and arguments.of_request:
            raise TypeError(
                f"`{function.__qualname__}` cannot use `stale=`: the refresh in the background runs"
                f" after the request, when its argument `{arguments.of_request[0]}` is no longer"
                " valid. Remove the argument and open what you need inside the function, or remove"
                " `stale=`."
            )

        @functools.wraps(function)
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            if (cache := current_cache()) is None:
                return await function(*args, **kwargs)
            values = arguments.bind(args, kwargs)
            call_key = build_key(args, kwargs, values)
            call_tags = [template.fill(values) for template in tag_templates]
            if key is None and (digest := arguments.owner(values)):
                call_tags.append(call_key)  # `invalidate("user:7")` applies to all objects
                call_key += digest
            compute = functools.partial(function, *args, **kwargs)
            # A refresh in the background would run after the session of the request is closed.
            has_session = bool(stale and _sessions_of(args, kwargs))
            call_policy = policy_without_stale if has_session else policy
            return await cache.fetch(call_policy, call_key, call_tags, compute)

        return wrapper

    return decorate


def key_builder(
    function: Callable[..., Any],
    arguments: Arguments,
    prefix: str | None,
    key: str | Callable[..., str] | None,
) -> Callable[[tuple[Any, ...], dict[str, Any], tuple[Any, ...]], str]:
    """Return a function of `(args, kwargs, bound values)` that builds the cache key of a call.

    Raises TypeError if the declared arguments cannot be part of a key.
    """
    if key is None:
        arguments.check()
        head = f"{prefix or identity_of(function)}:"
        return lambda _args, _kwargs, values: shorten(head + arguments.key(values))
    head = f"{prefix}:" if prefix else ""
    if callable(key):
        return lambda args, kwargs, _values: shorten(head + key(*args, **kwargs))
    template = Template(key, arguments)
    arguments.check_callers(template.fields)
    return lambda _args, _kwargs, values: shorten(head + template.fill(values))


def invalidate_cache(
    key_pattern: str | None = None, *, tags: Sequence[str] = ()
) -> Callable[[Function[P, T]], Function[P, T]]:
    """Invalidate cached values after a call of the function has succeeded.

    `key_pattern` is a cache key or a pattern (`*`, `?`, `[ab]`). It and `tags` are templates:
    `"user:{user_id}:*"`. In a database transaction, an after-commit callback invalidates the
    values; a rollback invalidates nothing.
    """
    if key_pattern is None and not tags:
        raise TypeError(
            "invalidate_cache() needs `key_pattern` or `tags`, for example"
            ' `@invalidate_cache(key_pattern="user:{user_id}")`.'
        )

    def decorate(function: Function[P, T]) -> Function[P, T]:
        check_function(function, "@invalidate_cache")
        arguments = Arguments(function)
        check_strings(arguments.name, tags=tags)
        patterns = [Template(key_pattern, arguments)] if key_pattern else []
        tag_templates = [Template(tag, arguments) for tag in tags]

        @functools.wraps(function)
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            values = arguments.bind(args, kwargs)
            call_patterns = [pattern.fill(values) for pattern in patterns]
            call_tags = [template.fill(values) for template in tag_templates]
            with watch_commits() as commits:
                result = await function(*args, **kwargs)
            sessions = open_transactions(_sessions_of(args, kwargs))
            # The function may have committed, and then started another transaction.
            now = bool(commits) or not sessions
            await _invalidate(call_patterns, call_tags, sessions, now=now)
            return result

        return wrapper

    return decorate


async def invalidate(
    *key_patterns: str, tags: Sequence[str] = (), session: AsyncSession | None = None
) -> None:
    """Invalidate keys, key patterns and tags; in a transaction, after the commit.

    `session` selects the transaction (default: all that this asyncio task has open).
    """
    check_strings("invalidate", tags=tags)
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
    """Return the sessions among the arguments and among the attributes of the first argument."""
    attributes = getattr(args[0], "__dict__", {}) if args else {}
    values = (*args, *kwargs.values(), *attributes.values())
    return [value.sync_session for value in values if isinstance(value, AsyncSession)]
