from tests.kit import connect, http


async def test_smoke(server):
    s = await server()
    async with connect(s) as c:
        print(c.welcome)
        print(await c.ask("ping"))
        a = await c.ask("user_message", content="hi", agent="echo")
        print(a)
        print([m["type"] for m in await c.until("agent_completed")])
        print((await c.finish()))
        print(await c.read_rest())
    r = await http(s, "/health")
    print(r)
