-- What Portgate's nodes share of their limits. The arithmetic is that of the memory store: see bucket.go.
--
-- A rate's key holds the time at which its bucket is full again, as seconds.nanoseconds of this server's
-- clock, and expires then. Differences of such times are exact in a double up to 104 days.
--
-- A count's key is a hash of how many each node holds: node -> count:number. Every count that a node sends
-- is all that it holds now, numbered, so that one that comes late or twice does no harm. The last key is a
-- sorted set of the nodes that live, by when they are given up: what a node holds that is not in it
-- counts for nothing, and is removed.
--
-- KEYS   one for each request, and the set of nodes
-- ARGV   decide|publish|cancel, the node, its lease in ms, the life of a count in ms; then, for each request,
--        decide:   rate, interval, tolerance, longest delay in ns, or
--                  count, limit, what the node holds with this one, the number of that
--        publish:  what the node holds, the number of that
--        cancel:   interval in ns, the value that the key has if nothing was admitted since
-- RETURN decide:  which request refuses, or 0; else which delays; the delay; after which time to ask again;
--                 0 where this node holds something and was not known to live, else 1; then, where there is a delay, for each
--                 request: its delay, and the seconds and nanoseconds of the new value
--        cancel:  the numbers of those that could not be given back
--        publish: 1 where this node was known to live, else 0; which key holds something else than a count, or 0

local node, lease, life = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local nodes = KEYS[#KEYS]
local time = redis.call('TIME')
local sec, nsec = tonumber(time[1]), tonumber(time[2]) * 1000
local msec = sec * 1000 + math.floor(nsec / 1000000)

-- expiry returns when a node is given up. No lease is longer than a new one. Where one is, this server's clock
-- was set back: all that are too long are cut, or nodes that are dead would live on until it is that late again.
local function expiry(other)
	local longest = msec + lease
	local expires = tonumber(redis.call('ZSCORE', nodes, other) or 0)
	if expires <= longest then
		return expires
	end
	for _, each in ipairs(redis.call('ZRANGEBYSCORE', nodes, longest + 1, '+inf')) do
		redis.call('ZADD', nodes, longest, each)
	end
	return longest
end

local lives = {[node] = true}
local function alive(other)
	if lives[other] == nil then
		lives[other] = expiry(other) > msec
	end
	return lives[other]
end

-- live renews the lease of this node when half of it is over, and reports whether there was one.
local function live()
	local expires = expiry(node)
	if expires < msec + lease / 2 then
		redis.call('ZADD', nodes, msec + lease, node)
		redis.call('ZREMRANGEBYSCORE', nodes, '-inf', msec - life)
		redis.call('PEXPIRE', nodes, 2 * life)
	end
	return expires > msec
end

local function hold(key, count, number)
	local known = redis.call('HGET', key, node)
	if known and tonumber(string.match(known, ':(%d+)$')) > number then
		return
	end
	if count == 0 then
		redis.call('HDEL', key, node)
		return
	end
	redis.call('HSET', key, node, string.format('%d:%d', count, number))
	redis.call('PEXPIRE', key, life)
end

if ARGV[1] == 'publish' then
	local known, bad = live(), 0
	for i = 1, #KEYS - 1 do
		local kind = redis.call('TYPE', KEYS[i])['ok']
		if kind == 'hash' or kind == 'none' then
			hold(KEYS[i], tonumber(ARGV[3 + 2 * i]), tonumber(ARGV[4 + 2 * i]))
		else
			bad = i
		end
	end
	return {known and 1 or 0, bad}
end

-- fill keeps the time that a bucket takes to be full again, and returns its seconds and nanoseconds.
local function fill(key, debt)
	local n = nsec + debt
	local s = sec + math.floor(n / 1e9)
	n = n % 1e9
	redis.call('SET', key, string.format('%d.%09d', s, n), 'PX', string.format('%d', math.ceil(debt / 1e6) + 1))
	return s, n
end

if ARGV[1] == 'cancel' then
	local kept = {}
	for i = 1, #KEYS - 1 do
		local value = redis.call('GET', KEYS[i])
		if value and value == ARGV[4 + 2 * i] then
			local s, n = string.match(value, '^(%d+)%.(%d+)$')
			fill(KEYS[i], math.max((s - sec) * 1e9 + n - nsec - tonumber(ARGV[3 + 2 * i]), 0))
		else
			kept[#kept + 1] = i
		end
	end
	return kept
end

-- rate returns the debt with one more, and by how much that is too early. What a stricter limit has
-- left comes down to what this one can ask for.
local function rate(key, interval, tolerance, longest)
	local value = redis.call('GET', key)
	if not value then
		return interval, interval - tolerance
	end
	local s, n = string.match(value, '^(%d+)%.(%d+)$')
	local debt = math.max((s - sec) * 1e9 + n - nsec, 0)
	if debt > tolerance + longest then
		debt = tolerance + longest
		fill(key, debt)
	end
	return debt + interval, debt + interval - tolerance
end

-- others adds up what the other nodes hold, and returns those that hold something but do not live.
local function others(key)
	local sum, dead = 0, {}
	local held = redis.call('HGETALL', key)
	for i = 1, #held, 2 do
		if not alive(held[i]) then
			dead[#dead + 1] = held[i]
		elseif held[i] ~= node then
			sum = sum + tonumber(string.match(held[i + 1], '^(%d+):'))
		end
	end
	return sum, dead
end

local refused, delaying, delay, again = 0, 1, 0, 0
local commits, known, reserved = {}, true, {}
for i = 1, #KEYS - 1 do
	local key, at = KEYS[i], 1 + 4 * i
	local a, b, c = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
	if ARGV[at] == 'count' then
		local sum, dead = others(key)
		if sum + b > a and refused == 0 then
			refused = i
		end
		commits[i] = function()
			for _, other in ipairs(dead) do
				redis.call('HDEL', key, other)
			end
			hold(key, b, c)
			known = live() and known
		end
	else
		local debt, early = rate(key, a, b, c)
		if early > c then
			again = math.max(again, early - c)
			if refused == 0 then
				refused = i
			end
		elseif early > delay then
			delaying, delay = i, early
		end
		commits[i] = function()
			local s, n = fill(key, debt)
			if early > 0 then
				reserved[i] = {early, s, n}
			end
		end
	end
end
if refused > 0 then
	return {refused, 0, 0, again, 1}
end
for _, commit in ipairs(commits) do
	commit()
end
local answer = {0, delaying, delay, 0, known and 1 or 0}
if delay > 0 then
	for i = 1, #KEYS - 1 do
		for _, each in ipairs(reserved[i] or {0, 0, 0}) do
			answer[#answer + 1] = each
		end
	end
end
return answer
