# Completion of ./deploy for bash and zsh: eval "$(./deploy completion)", in ~/.bashrc or ~/.zshrc with the full path.
if [ -n "${ZSH_VERSION:-}" ]; then
  autoload -U +X compinit && compinit -u
  autoload -U +X bashcompinit && bashcompinit
fi

_wanmetal_deploy() {
  local root word previous words=''
  root=$(cd "$(dirname "${COMP_WORDS[0]}")" 2> /dev/null && pwd) || return
  word=${COMP_WORDS[COMP_CWORD]}
  previous=${COMP_WORDS[COMP_CWORD - 1]}
  case $previous in
    -i | --inventory)
      COMPREPLY=($(compgen -f -- "$word"))
      return
      ;;
    -e | --extra-vars)
      words=$(sed -n 's/^\([a-z][a-z0-9_]*\):.*/\1=/p' "$root"/roles/*/defaults/main.yml)
      COMPREPLY=($(compgen -W "$words" -- "$word"))
      return
      ;;
    --variant) words='base wan' ;;
    --make) words='try text-to-video image-to-video nothing' ;;
    --*-file | --private-key | -l | --limit) return ;;
  esac
  [ -z "$words" ] || { COMPREPLY=($(compgen -W "$words" -- "$word")) && return; }
  words='-i --limit --check --diff -e --tags --skip-tags --ask-become-pass --vault-password-file --help'
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="$words init completion --lab --lab-stop --lab-remove"
    words="$words $(basename -s .yml "$root"/playbooks/*.yml | grep -vx -e hosts -e site)"
  elif [ "${COMP_WORDS[1]}" = init ]; then
    words='--hosts --user --jump --variant --make --data-dir --inventory --huggingface-token-file --civitai-token-file'
    words="$words --vault-password-file --yes --no-look --help"
  elif [ "${COMP_WORDS[1]} $COMP_CWORD" = 'logs 2' ]; then
    words='comfyui comfyui-api jupyterlab comfyui-handler --help'
  elif [ "${COMP_WORDS[1]} $COMP_CWORD" = 'backup 2' ]; then
    words='dump restore --help'
  elif [ "${COMP_WORDS[1]} $COMP_CWORD" = 'queue 2' ]; then
    words='status pause resume drain undrain token --help'
  elif [ "${COMP_WORDS[1]} ${COMP_WORDS[2]} $COMP_CWORD" = 'queue token 3' ]; then
    words='add revoke'
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _wanmetal_deploy deploy # where nothing fits, files do
