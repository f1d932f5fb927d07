# shellcheck shell=bash
# Functions for scripts that start servers by hand, without systemd, and stop them by process id.
# Sourced, not run. The script sets `DIR`, where all of its servers' state is: each has DIR/NAME.pid
# (its process id and start time: a pid may be another process's by now) and DIR/NAME.out.

export no_proxy=127.0.0.1,localhost NO_PROXY=127.0.0.1,localhost LC_ALL=C

die() { echo "$(basename "$0" .sh): $*" >&2; exit 1; }

# Field FIELD of /proc/PID/stat, counted behind the program's name: 1 state, 20 start time.
process_stat() { sed -n 's/^.*) //p' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f"$2"; } # PID FIELD

# A zombie, which some PID 1 are slow to bury, is no server any more.
runs() { # NAME
  local pid start
  { read -r pid start <"$DIR/$1.pid"; } 2>/dev/null || return 1
  [ "$(process_stat "$pid" 20)" = "$start" ] && [ "$(process_stat "$pid" 1)" != Z ]
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; } # PORT

# Any N neighbouring free ports: PORT to PORT+N-1. Below the ephemeral ones.
free_ports() { # N
  local port try offset
  for ((try = 0; try < 200; try++)); do
    port=$((27000 + RANDOM % 5000))
    for ((offset = 0; offset < $1; offset++)); do
      ! listening $((port + offset)) || continue 2
    done
    echo "$port"
    return
  done
  die "no $1 neighbouring free ports found"
}

# Starts a server in a session of its own, unless it runs: the terminal's Ctrl-C reaches who tears it
# down, not the server. The lock's descriptor (9) stays here.
start() { # NAME COMMAND...
  local name=$1
  shift
  if runs "$name"; then return; fi
  setsid "$@" >>"$DIR/$name.out" 2>&1 </dev/null 9>&- &
  echo "$! $(process_stat $! 20)" >"$DIR/$name.pid"
}

wait_for() { # NAME SECONDS COMMAND... : until the command succeeds, as long as the server lives
  local name=$1 end=$((SECONDS + $2))
  shift 2
  until "$@" >/dev/null 2>&1; do
    runs "$name" || { tail -n 8 "$DIR/$name.out" >&2; die "$name ended at its start; its output is in $DIR/$name.out"; }
    [ $SECONDS -lt $end ] || { tail -n 8 "$DIR/$name.out" >&2; die "$name isn't ready in time; its output is in $DIR/$name.out"; }
    sleep 0.1
  done
}

wait_http() { wait_for "$1" 60 curl -s -m 20 -o /dev/null "$2"; } # NAME URL

# TERM to all, 5 s, then KILL to what is left of their sessions' first process groups.
stop() { # NAME...
  local name pid start i
  for name in "$@"; do
    if runs "$name"; then
      read -r pid start <"$DIR/$name.pid"
      kill "$pid" 2>/dev/null || true
    fi
  done
  for ((i = 0; i < 100; i++)); do
    for name in "$@"; do ! runs "$name" || { sleep 0.05; continue 2; }; done
    break
  done
  for name in "$@"; do
    if [ -e "$DIR/$name.pid" ]; then
      read -r pid start <"$DIR/$name.pid"
      # Only a group that is still of that session: the id may be another's by now.
      if pgrep -g "$pid" -s "$pid" >/dev/null; then kill -KILL -- "-$pid" 2>/dev/null || true; fi
      rm -f "$DIR/$name.pid"
    fi
  done
}

# Sets and makes DIR, which is then ours to remove; one script at a time works on it.
open_directory() { # DIRECTORY
  DIR=$(realpath -m -- "$1")
  [ ! -e "$DIR" ] || [ -e "$DIR/made-by-sealblk" ] || [ -z "$(ls -A "$DIR")" ] ||
    die "$DIR is not empty and not ours"
  mkdir -p "$DIR"
  touch "$DIR/made-by-sealblk"
  exec 9>"$DIR.lock"
  flock -w 300 9 || die "another script holds $DIR.lock"
}

remove_directory() {
  if [ -e "$DIR/made-by-sealblk" ]; then rm -rf -- "$DIR"; fi
  rm -f -- "$DIR.lock"
}
