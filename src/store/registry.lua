-- One heartbeat. A translation of src/store/model.rs, function by function and in its order; why
-- each step is right stands there, and a test compares the two on random heartbeats.
--
-- KEYS[1]  the registry, a hash:
--            meta        epoch, mark, agreement, graceUntil, born, lastEffective, refused; format, server
--            m:<id>      one member with its lease and who accuses it
--            pins, tombstones, history
--          Members have a field each, so that a heartbeat writes its own and not everybody's.
-- ARGV[1]  the request
-- ARGV[2]  channel for the new epoch
-- ARGV[3]  run id of this server, '' where the caller may not know it
-- ARGV[4]  ms for which the hash outlives its last heartbeat
-- ARGV[5]  only in tests: the clock, in ms
--
-- Nothing is written before everything is decided: an error on the way changes nothing.

local FORMAT = 1
local HISTORY = 32
local TOMBSTONES = 256
local PINS = 4096
local TOMBSTONE_LEASES = 20
local REFUSED = 16
local EVICTED_LIFE = 24 * 3600000
local LAPSED, CRASHED, LEFT = 'its lease lapsed', 'it crashed', 'it left'

local key = KEYS[1]
local request = cjson.decode(ARGV[1])
local now = tonumber(ARGV[5])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- What is stored.

local names, ids = { 'meta', 'tombstones' }, {}
for _, field in ipairs(redis.call('HKEYS', key)) do
  if string.sub(field, 1, 2) == 'm:' then
    names[#names + 1] = field
    ids[#ids + 1] = string.sub(field, 3)
  end
end
local texts = redis.call('HMGET', key, unpack(names))

local meta = texts[1] and cjson.decode(texts[1])
  or { format = FORMAT, epoch = 0, mark = '', agreement = '', graceUntil = 0, born = 0, lastEffective = 0 }
if meta.format ~= FORMAT then
  return redis.error_reply('SMARTROUTE the registry has format ' .. tostring(meta.format) .. ' and this node writes format ' .. FORMAT
    .. ': run the same version of SmartRoute on every node, or use another redisPrefix')
end

local members = {}
for at, id in ipairs(ids) do members[id] = cjson.decode(texts[at + 2]) end

-- Large and seldom needed: read when they are.
local parts = { tombstones = cjson.decode(texts[2] or '{}') }
local function part(name)
  if not parts[name] then parts[name] = cjson.decode(redis.call('HGET', key, name) or '{}') end
  return parts[name]
end

-- What has to be written: fields, and members by id.
local dirty, touched = { meta = true }, {}

-- Texts are compared by bytes: `<` follows the locale of the server.
local function precedes(a, b)
  for at = 1, math.min(#a, #b) do
    local x, y = string.byte(a, at), string.byte(b, at)
    if x ~= y then return x < y end
  end
  return #a < #b
end

local function sorted(map)
  local keys = {}
  for name in pairs(map) do keys[#keys + 1] = name end
  table.sort(keys, precedes)
  return keys
end

local function count(map)
  local number = 0
  for _ in pairs(map) do number = number + 1 end
  return number
end

local function integer(number) return string.format('%.0f', number) end

local function admitted(entry) return entry.state ~= 'joining' end

local function tombstone_key(id, incarnation) return id .. '/' .. incarnation end

local function silence(lease) return math.floor(lease * 103 / 300) + 1 end

local function refuse(outcome, detail)
  return {
    seq = request.seq,
    now = now,
    outcome = outcome,
    detail = detail or '',
    effective = false,
    leaseLeft = 0,
    lastSeq = 0,
    known = { epoch = meta.epoch, mark = meta.mark },
  }
end

local function view()
  local shown = {}
  for id, entry in pairs(members) do
    shown[id] = {
      incarnation = entry.incarnation,
      record = entry.record,
      state = entry.state,
      lease = entry.lease,
      since = entry.since,
      known = entry.known,
    }
  end
  return { members = shown, pins = part('pins') }
end

local function adopt()
  if next(members) == nil then meta.agreement = request.agreement end
  for id, member in pairs(request.view.members) do
    if not parts.tombstones[tombstone_key(id, member.incarnation)] then
      local expires = now + member.lease
      local entry = members[id]
      if entry and entry.incarnation == member.incarnation then
        entry.leaseUntil = math.max(entry.leaseUntil, expires)
        if entry.state == 'joining' or member.state == 'leaving' then entry.state = member.state end
        entry.since = member.since
      else
        members[id] = {
          incarnation = member.incarnation,
          record = member.record,
          state = member.state,
          lease = member.lease,
          since = member.since,
          known = member.known,
          seq = 0,
          leaseUntil = expires,
          renewals = 0,
          renewedAt = now,
          evicted = '',
          accusations = {},
        }
      end
      touched[id] = true
    end
  end
  parts.pins, dirty.pins = request.view.pins or {}, true
  parts.history, dirty.history = {}, true
  meta.epoch = math.max(meta.epoch, request.known.epoch)
  meta.graceUntil = math.max(meta.graceUntil, now + request.lease)
end

local function accuse()
  local gone = request.gone or {}
  for id, entry in pairs(members) do
    local before = entry.accusations[request.id]
    if gone[id] ~= entry.incarnation then
      if before then
        entry.accusations[request.id] = nil
        touched[id] = true
      end
    elseif not (before and before.by == request.incarnation and before.renewals == entry.renewals) then
      entry.accusations[request.id] = { by = request.incarnation, renewals = entry.renewals, since = now }
      touched[id] = true
    end
  end
end

local function stands(accused, accusation)
  return accusation.renewals == accused.renewals and now >= accusation.since + silence(accused.lease)
end

local function may_expire(id)
  local entry = members[id]
  if not entry or now < entry.leaseUntil then return false end
  if not admitted(entry) then return true end
  if now < meta.graceUntil then return false end
  local caller = members[request.id]
  local knows_caller = caller and caller.incarnation == request.incarnation
    and admitted(caller) and entry.known >= caller.since
  local accusation = entry.accusations[request.id]
  local seen_gone = accusation and accusation.by == request.incarnation and stands(entry, accusation)
  return knows_caller or seen_gone or now >= entry.renewedAt + request.orphanTimeout
end

local function may_evict(id)
  local entry = members[id]
  if not entry or not admitted(entry) or now < meta.graceUntil or not entry.accusations[request.id] then
    return false
  end
  local views = 0
  for epoch, listed in pairs(part('history')) do
    if tonumber(epoch) >= entry.known then
      views = views + 1
      local accusers = 0
      for accuser, accusation in pairs(entry.accusations) do
        local current = members[accuser]
        local is_member = current and current.incarnation == accusation.by and admitted(current)
        if is_member and listed[accuser] == accusation.by and stands(entry, accusation) then
          accusers = accusers + 1
        end
      end
      if accusers * 2 < count(listed) then return false end
    end
  end
  return entry.known > 0 and views == meta.epoch - entry.known + 1
end

local function remove(id, reason)
  local entry = members[id]
  if not entry then return end
  members[id] = nil
  touched[id] = true
  local life = request.lease * TOMBSTONE_LEASES
  if entry.evicted ~= '' then
    reason = entry.evicted
    life = math.max(life, EVICTED_LIFE)
  end
  for other, held in pairs(members) do
    if held.accusations[id] then
      held.accusations[id] = nil
      touched[other] = true
    end
  end
  local tombstones = parts.tombstones
  if count(tombstones) >= TOMBSTONES then
    local oldest
    for name, tombstone in pairs(tombstones) do
      local best = oldest and tombstones[oldest]
      if not best or tombstone['until'] < best['until']
        or (tombstone['until'] == best['until'] and precedes(name, oldest)) then
        oldest = name
      end
    end
    tombstones[oldest] = nil
  end
  tombstones[tombstone_key(id, entry.incarnation)] = { ['until'] = now + life, reason = reason }
  dirty.tombstones = true
end

local function expire()
  local out = {}
  for _, id in ipairs(sorted(members)) do
    if id ~= request.id then
      if may_expire(id) then
        out[#out + 1] = { id, LAPSED }
      elseif may_evict(id) then
        out[#out + 1] = { id, CRASHED }
      end
    end
  end
  for _, gone in ipairs(out) do remove(gone[1], gone[2]) end
  return #out > 0
end

local function admit()
  local changed = false
  for id, incarnation in pairs(request.admit or {}) do
    local entry = members[id]
    if entry and entry.incarnation == incarnation and not admitted(entry) and entry.evicted == '' then
      entry.state = 'active'
      entry.since = meta.epoch + 1
      touched[id] = true
      changed = true
    end
  end
  return changed
end

local function pin()
  local changed = false
  if not request.pins then return false end
  local pins = part('pins')
  for _, document in ipairs(sorted(request.pins)) do
    local node = request.pins[document]
    if node == '' then
      if pins[document] then
        pins[document] = nil
        changed = true
      end
    elseif pins[document] ~= node and (pins[document] or count(pins) < PINS) then
      pins[document] = node
      changed = true
    end
  end
  if changed then dirty.pins = true end
  return changed
end

local function evict()
  local changed, out = false, {}
  for id, eviction in pairs(request.evict or {}) do
    local entry = members[id]
    if entry and entry.incarnation == eviction.incarnation then
      if eviction.drain then
        if entry.state == 'active' then
          entry.state = 'leaving'
          changed = true
        end
      else
        if entry.evicted == '' then entry.evicted = eviction.reason end
        if eviction.force and id ~= request.id then out[#out + 1] = id end
      end
      touched[id] = true
    end
  end
  table.sort(out, precedes)
  for _, id in ipairs(out) do
    remove(id, LAPSED)
    changed = true
  end
  return changed
end

local function found()
  for _, entry in pairs(members) do
    if admitted(entry) then return false end
  end
  if next(part('history')) == nil and now < meta.born + request.foundAfter then return false end
  local entry = members[request.id]
  if not entry or admitted(entry) or entry.evicted ~= '' then return false end
  entry.state = 'active'
  entry.since = meta.epoch + 1
  touched[request.id] = true
  return true
end

local published = false
local function publish()
  meta.epoch = meta.epoch + 1
  meta.mark = request.id .. '/' .. request.incarnation .. '/' .. integer(request.seq) .. '/' .. integer(now)
  local listed = {}
  for id, entry in pairs(members) do
    if admitted(entry) then listed[id] = entry.incarnation end
  end
  local history = part('history')
  if next(listed) ~= nil or next(history) ~= nil then
    history[string.format('%010.0f', meta.epoch)] = listed
    dirty.history = true
  end
  if count(history) > HISTORY then history[sorted(history)[1]] = nil end
  published = true
end

local function apply()
  local tombstones = parts.tombstones
  for name, tombstone in pairs(tombstones) do
    if tombstone['until'] <= now then
      tombstones[name] = nil
      dirty.tombstones = true
    end
  end
  if meta.born == 0 then
    meta.born = now
    meta.graceUntil = now + request.lease
  end

  local refused = meta.refused or {}
  for id, stranger in pairs(refused) do
    if stranger['until'] <= now then refused[id] = nil end
  end
  meta.refused = refused
  if next(members) ~= nil and meta.agreement ~= request.agreement then
    local longest = 0
    for _, member in pairs(members) do longest = math.max(longest, member.lease) end
    if count(refused) < REFUSED or refused[request.id] then
      refused[request.id] = { agreement = request.agreement, ['until'] = now + longest }
    end
    return refuse('mismatch', meta.agreement)
  end

  local tombstone = tombstones[tombstone_key(request.id, request.incarnation)]
  if tombstone then return refuse('departed', tombstone.reason) end

  local fresh = request.asOf > 0 and now <= request.asOf + math.floor(request.lease / 6)

  local known, changed = request.known, false
  local unknown = request.want ~= 'join' and not members[request.id]
  local behind = known.epoch > meta.epoch or (known.epoch == meta.epoch and known.mark ~= meta.mark)
    or (unknown and next(part('history')) == nil)
  if behind and known.epoch > 0 then
    if not (request.view and fresh) then return refuse('behind') end
    adopt()
    changed = true
  end

  local other = members[request.id]
  if other and other.incarnation ~= request.incarnation then
    if fresh and may_expire(request.id) then
      remove(request.id, LAPSED)
      changed = true
    else
      accuse()
      local reply = refuse('idTaken', other.record)
      reply.leaseLeft = math.max(0, other.leaseUntil - now)
      return reply
    end
  end

  local entry = members[request.id]
  if not entry then
    if request.want ~= 'join' then return refuse('departed', LAPSED) end
    if next(members) == nil then meta.agreement = request.agreement end
    if request.floor > meta.epoch then meta.epoch = request.floor end
    members[request.id] = {
      incarnation = request.incarnation,
      record = request.record,
      state = 'joining',
      lease = request.lease,
      since = 0,
      known = 0,
      seq = request.seq,
      leaseUntil = now + request.lease,
      renewals = 1,
      renewedAt = now,
      evicted = '',
      accusations = {},
    }
    touched[request.id] = true
    changed = true
  else
    if request.seq <= entry.seq then
      local reply = refuse('stale')
      reply.lastSeq = entry.seq
      return reply
    end
    touched[request.id] = true
    entry.seq = request.seq
    if entry.evicted ~= '' and request.want ~= 'leave' then return refuse('evicted', entry.evicted) end
    entry.lease = request.lease
    entry.leaseUntil = math.max(entry.leaseUntil, now + request.lease)
    entry.renewals = entry.renewals + 1
    entry.renewedAt = now
    entry.known = math.max(entry.known, math.min(known.epoch, meta.epoch))
    if entry.record ~= request.record then
      entry.record = request.record
      changed = true
    end
    if request.want == 'drain' and entry.state == 'active' then
      entry.state = 'leaving'
      changed = true
    end
    if request.want == 'leave' then
      remove(request.id, LEFT)
      publish()
      return refuse('left')
    end
  end

  local caller_admitted = admitted(members[request.id])
  local longest = 0
  for _, member in pairs(members) do longest = math.max(longest, member.lease) end
  if caller_admitted then
    if now >= meta.lastEffective + math.floor(longest / 2) then
      meta.graceUntil = math.max(meta.graceUntil, now + longest)
    end
    if fresh then meta.lastEffective = now end
  end

  accuse()
  if fresh then
    changed = expire() or changed
    if caller_admitted then
      changed = admit() or changed
      changed = pin() or changed
      changed = evict() or changed
    end
  end
  changed = found() or changed

  if changed then publish() end
  local reply = refuse('renewed')
  reply.effective = fresh and caller_admitted
  if meta.epoch ~= known.epoch or meta.mark ~= known.mark then reply.view = view() end
  for id, stranger in pairs(refused) do
    reply.strangers = reply.strangers or {}
    reply.strangers[id] = stranger.agreement
  end
  return reply
end

-- The model has one clock. Here another server has another one (a failover, a slot that moved), and
-- leases are not compared with it: as after a gap, nobody is expired for the longest lease.
if ARGV[3] ~= '' and meta.server ~= ARGV[3] then
  local longest = request.lease
  for _, entry in pairs(members) do longest = math.max(longest, entry.lease) end
  if next(members) ~= nil then meta.graceUntil = math.max(meta.graceUntil, now + longest) end
  meta.server = ARGV[3]
end

local reply = apply()

-- First what may be refused, which a subscriber only sees when the rest is done.
if published then redis.call('PUBLISH', ARGV[2], integer(meta.epoch)) end
local set, gone = { 'meta', cjson.encode(meta) }, {}
for name in pairs(dirty) do
  if name ~= 'meta' then
    set[#set + 1] = name
    set[#set + 1] = cjson.encode(parts[name])
  end
end
for id in pairs(touched) do
  if members[id] then
    set[#set + 1] = 'm:' .. id
    set[#set + 1] = cjson.encode(members[id])
  else
    gone[#gone + 1] = 'm:' .. id
  end
end
redis.call('HSET', key, unpack(set))
if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
redis.call('PEXPIRE', key, ARGV[4])
return cjson.encode(reply)
