#!/usr/bin/env escript
%% Answers with: mistakes, questions asked, ticks of a timer, lines that came back from a port.

main([Number]) ->
    Counter = spawn_link(fun() -> count(0) end),
    {ok, _} = timer:send_interval(5, Counter, tick),
    Echo = spawn_link(fun() -> echo(open_port({spawn, "cat"}, [{line, 100}]), 0, 0) end),
    {ok, Listener} = gen_tcp:listen(list_to_integer(Number),
        [{active, false}, {reuseaddr, true}, {ip, {127, 0, 0, 1}}, {packet, http}]),
    accept(Listener, Counter, Echo, 1).

count(Ticks) ->
    receive
        tick -> count(Ticks + 1);
        {From, ask} -> From ! {self(), Ticks}, count(Ticks)
    end.

echo(Port, Lines, Mistakes) ->
    Line = integer_to_list(Lines),
    port_command(Port, [Line, "\n"]),
    New = receive {Port, {data, {eol, Line}}} -> 0; {Port, _} -> 1 end,
    receive {From, ask} -> From ! {self(), {Lines, Mistakes}} after 0 -> ok end,
    echo(Port, Lines + 1, Mistakes + New).

ask(Process) ->
    Process ! {self(), ask},
    receive {Process, Answer} -> Answer end.

accept(Listener, Counter, Echo, Asked) ->
    {ok, Client} = gen_tcp:accept(Listener),
    headers(Client),
    {Lines, Mistakes} = ask(Echo),
    Answer = io_lib:format("HTTP/1.0 200 OK\r\n\r\n~p ~p ~p ~p", [Mistakes, Asked, ask(Counter), Lines]),
    ok = gen_tcp:send(Client, Answer),
    gen_tcp:close(Client),
    accept(Listener, Counter, Echo, Asked + 1).

headers(Client) ->
    case gen_tcp:recv(Client, 0) of
        {ok, http_eoh} -> ok;
        {ok, _} -> headers(Client);
        {error, _} -> ok
    end.
