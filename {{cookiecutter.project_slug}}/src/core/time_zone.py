from zoneinfo import ZoneInfo

TimeZone = ZoneInfo
UTC = ZoneInfo("UTC")
