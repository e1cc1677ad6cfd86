"""`tools` and `tool_choice`: which functions a model may call."""

from __future__ import annotations

from dataclasses import dataclass

from dllama_gpu.api.errors import ApiError
from dllama_gpu.api.requests import ChatRequest, NamedTool, Tool


@dataclass(frozen=True)
class Toolbox:
    """Which functions the model is told of, and what it must do with them."""

    tools: tuple[Tool, ...] = ()
    """Those that the model is told of."""
    callable: tuple[Tool, ...] = ()
    """Those that it may call."""
    is_required: bool = False
    """Whether it must call one."""
    parallel: bool = True
    """Whether it may call several."""
    forces_parallel: bool = False
    """Whether a forced call may be followed by others; only where that is asked for, as small models find no end."""


def select_tools(fields: ChatRequest) -> Toolbox:
    """What `tools` and `tool_choice` mean together. Raises ApiError 400 where they do not."""
    tools = tuple(fields.tools or ())
    choice = fields.tool_choice
    parallel = fields.parallel_tool_calls is not False
    if choice is not None and choice not in ("none", "auto") and not tools:
        raise ApiError(400, "tool_choice asks for a call, but there are no tools", param="tool_choice")
    names = [tool.function.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            field = f"tools[{index}].function.name"
            raise ApiError(400, f"{field} is {name!r} as of another tool; rename one of them", param=field)
    if not tools or choice == "none":
        return Toolbox()
    if isinstance(choice, NamedTool):
        wanted = tuple(tool for tool in tools if tool.function.name == choice.function.name)
        if not wanted:
            raise ApiError(
                400,
                f"tool_choice names the function {choice.function.name[:64]!r}, which is not among the tools",
                param="tool_choice.function.name",
            )
        return Toolbox(tools, wanted, is_required=True, parallel=False)
    return Toolbox(
        tools,
        tools,
        is_required=choice == "required",
        parallel=parallel,
        forces_parallel=fields.parallel_tool_calls is True,
    )
