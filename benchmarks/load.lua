-- What wrk sends, by the script's first argument: nothing for the address as it is, or read, list,
-- insert, or mixed (60 % read, 10 % list, 20 % insert, 10 % read-modify-write). The second is the
-- number of rows there are. Or table (80 % list, 20 % insert), then the path of the list, and an
-- insert's method, path and body. Reports as a line of JSON.
local seen, threads = {}, {}
answered, distinct, inserted = 0, 0, 0

function setup(thread) table.insert(threads, thread) end

local function send(method, path, body)
  local headers = {["Content-Type"] = "application/json"}
  for name, value in pairs(wrk.headers) do headers[name] = value end
  return wrk.format(method, path, headers, body)
end

local function post(path, body) return send("POST", path, body) end

function init(args)
  local kind, rows = args[1], tonumber(args[2] or "1")
  if not kind then return end
  math.randomseed(7)
  if kind == "table" then
    local list, insert = wrk.format("GET", args[2]), send(args[3], args[4], args[5])
    request = function() return math.random(100) <= 80 and list or insert end
    response = count_inserts
    return
  end
  local insert = post("/notes", '{"text":"written by the benchmark"}')
  local increment = post("/counters/1/increment", "")
  local function read() return wrk.format("GET", "/notes/" .. math.random(2, rows)) end
  local function list() return wrk.format("GET", "/notes?limit=20&after=" .. math.random(rows)) end
  local function write() return insert end
  local function mixed()
    local number = math.random(100)
    if number <= 60 then return read() end
    if number <= 70 then return list() end
    return number <= 90 and insert or increment
  end
  request = ({read = read, list = list, insert = write, mixed = mixed})[kind]
  if kind == "mixed" then response = count end
end

-- Two increments that were answered with the same value: one of them is lost.
function count(status, _, body)
  local value = status < 300 and body:match('"counter":(%d+)')
  if value then
    answered = answered + 1
    if not seen[value] then distinct = distinct + 1 end
    seen[value] = true
  end
end

-- A list begins with a bracket, and the answer to an insert does not.
function count_inserts(status, _, body)
  if status < 300 and body:sub(1, 1) ~= "[" then inserted = inserted + 1 end
end

function done(summary, latency, _)
  local answered, distinct, inserted = 0, 0, 0
  for _, thread in ipairs(threads) do
    answered = answered + thread:get("answered")
    distinct = distinct + thread:get("distinct")
    inserted = inserted + thread:get("inserted")
  end
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"seconds":%.6f,"p50":%.3f,"p99":%.3f,"refused":%d,"broken":%d,'
      .. '"increments":%d,"repeated":%d,"inserted":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout, answered, answered - distinct,
    inserted))
end
