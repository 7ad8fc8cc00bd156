# Completion of cfs(1) in bash. Verbs and options come from --help, so that they
# are always those of the program that is called.

_cfs() {
  local cfs=$1 word=$2 previous=$3 verb=${COMP_WORDS[1]}
  local words=

  if ((COMP_CWORD == 1)); then
    words="$("$cfs" --help 2>/dev/null | sed -nE 's/^  ([a-z]+)  .*/\1/p') --help --version"
  elif [[ $previous == '=' || $word == '=' ]]; then
    # bash makes three words of --name=value.
    local name=$previous
    [[ $previous == '=' ]] && name=${COMP_WORDS[COMP_CWORD - 2]}
    [[ $word == '=' ]] && word=
    words=$("$cfs" "$verb" --help 2>/dev/null |
      sed -nE "s/^.* $name=([a-z]+(\|[a-z]+)+) .*/\1/p" | tr '|' ' ')
  elif [[ $word == -* ]]; then
    words=$("$cfs" "$verb" --help 2>/dev/null |
      sed -nE 's/^ +(-., )?(--[a-z-]+=?).*/\2/p')
  fi

  if [[ -n $words ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace
  elif [[ $verb == mount || $verb == umount ]] || [[ $previous == --store || $previous == '=' ]]; then
    mapfile -t COMPREPLY < <(compgen -d -- "$word")
    compopt -o filenames
  else
    mapfile -t COMPREPLY < <(compgen -f -- "$word")
    compopt -o filenames
  fi
}

complete -F _cfs cfs
