-- Extra argument: the task that a callback told, for a key of which nobody knows better or will in a moment.
local entry = view()
if entry and row.ref == ref and entry[3] == 'unknown' then
    write('bound', extra, row.lapses_at)
    tell()
end
