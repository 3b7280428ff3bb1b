# Completion of pyvirt for bash 4.4 and later; made by: pyvirt completion bash
# A row is: command, word, what its value is (cli/grammar.py), text (which bash does not show).
__pyvirt_rows='
@ROWS@
'
declare -gA __pyvirt_values=()
while IFS=$'\t' read -r __pyvirt_command __pyvirt_word __pyvirt_value _; do
    __pyvirt_values["$__pyvirt_command $__pyvirt_word"]=$__pyvirt_value
done <<<"$__pyvirt_rows"
unset __pyvirt_command __pyvirt_word __pyvirt_value

# Put into __pyvirt_shape what the value of word $2 of command $1 is; fail where there is none.
__pyvirt_find() {
    __pyvirt_shape=${__pyvirt_values["$1 $2"]-}
    [[ -n $__pyvirt_shape ]]
}

# Offer $1, with $2 behind it, if it begins with what has been typed.
__pyvirt_offer() {
    [[ $1 == "$__pyvirt_cur"* ]] && COMPREPLY+=("$1${2-}")
}

# Offer the values of kind $1, behind the text $2.
__pyvirt_kind() {
    local word flag=-f before='' text option=${1#\#}
    local -a list
    case $1 in
    _) ;;
    @ | /)
        [[ $1 == / ]] && flag=-d
        compopt -o filenames
        while IFS= read -r word; do
            COMPREPLY+=("$2$word")
        done < <(compgen "$flag" -- "${__pyvirt_cur#"$2"}")
        ;;
    \#*)
        for word in "${__pyvirt_words[@]}"; do
            text=$word
            [[ $word == -*=* ]] && before=${word%%=*} text=${word#*=}
            if [[ ${before/#--/-} == "-${option%%/*}" && $text == "${option#*/}"* &&
                ,$text == *,id=* ]]; then
                text=,$text
                text=${text#*,id=}
                __pyvirt_offer "$2${text%%,*}"
            fi
            before=$word
        done
        ;;
    *)
        IFS='|' read -ra list <<<"$1"
        for word in "${list[@]}"; do
            __pyvirt_offer "$2$word"
        done
        ;;
    esac
}

# Offer values of the forms $1: first parts, members, or what a member may be.
__pyvirt_value() {
    local form fixed kind member name last given='' head=${__pyvirt_cur%%,*} is_told=''
    local -a forms parts
    [[ $__pyvirt_cur == *,* ]] && given=${__pyvirt_cur%,*},
    last=${__pyvirt_cur#"$given"}
    local -A seen=()
    IFS=' ' read -ra forms <<<"$1"
    for form in "${forms[@]}"; do
        IFS=, read -ra parts <<<"$form"
        fixed=${parts[0]} kind=''
        case $fixed in
        *:*) kind=${fixed#*:} fixed=${fixed%%:*}: ;;
        [@_/]) kind=$fixed fixed='' ;;
        esac
        if [[ -z $given && -n ${parts[0]} ]]; then
            [[ ${#parts[@]} -gt 1 ]] && compopt -o nospace
            if [[ -n $kind && $head == "$fixed"* ]]; then
                __pyvirt_kind "$kind" "$fixed"
            elif __pyvirt_offer "$fixed" && [[ -n $kind ]]; then
                compopt -o nospace
            fi
            continue
        fi
        [[ -z $fixed || $head == "$fixed" || (-n $kind && $head == "$fixed"*) ]] || continue
        for member in "${parts[@]:1}"; do
            name=${member%%=*}
            if [[ $member == *=* && $last == "$name="* ]]; then
                compopt -o nospace
                [[ -z $is_told ]] && __pyvirt_kind "${member#*=}" "$given$name="
                is_told=1
            elif [[ ,$given != *,"$name"[=,]* && -z ${seen[$name]-} ]]; then
                seen[$name]=1
                [[ $member == *=* ]] && name+='='
                __pyvirt_offer "$given$name" && compopt -o nospace
            fi
        done
    done
}

# Offer the options of command $1, and its sub-commands where none of its words ($2) stands.
__pyvirt_names() {
    local command word shape text dash=''
    [[ $__pyvirt_cur == --* ]] && dash=-
    while IFS=$'\t' read -r command word shape text; do
        if [[ $command == "$1" && $word == -* ]]; then
            __pyvirt_offer "$dash$word"
        elif [[ $command == "$1" && $shape == '!' && $2 == 0 ]]; then
            __pyvirt_offer "$word"
        fi
    done <<<"$__pyvirt_rows"
}

_pyvirt() {
    local line=${COMP_LINE:0:COMP_POINT} word reply command=pyvirt pending='' count=0 prefix='' IFS=$' \t\n'
    local __pyvirt_cur='' __pyvirt_shape=''
    local -a __pyvirt_words
    # Without -r, for a backslash quotes.
    read -a __pyvirt_words <<<"$line" # shellcheck disable=SC2162
    if [[ $line != *[[:space:]] || $line == *'\ ' ]]; then
        __pyvirt_cur=${__pyvirt_words[-1]}
        unset '__pyvirt_words[-1]'
    fi
    for word in "${__pyvirt_words[@]:1}"; do
        if [[ $word == -?* ]]; then
            pending=''
            __pyvirt_find "$command" "${word/#--/-}" && [[ $__pyvirt_shape != [-?]* ]] &&
                pending=$__pyvirt_shape
        elif [[ -n $pending ]]; then
            pending=''
        elif __pyvirt_find "$command" "$word" && [[ $__pyvirt_shape == '!' ]]; then
            command+=" $word"
            count=0
        else
            count=$((count + 1))
        fi
    done
    word=${__pyvirt_cur/#--/-}
    if [[ -n $pending && $word != -* ]]; then
        __pyvirt_value "$pending"
    elif [[ $word == -*=* ]] && __pyvirt_find "$command" "${word%%=*}"; then
        prefix=${__pyvirt_cur%%=*}=
        __pyvirt_cur=${__pyvirt_cur#*=}
        __pyvirt_value "${__pyvirt_shape#\?}"
    elif [[ $word != -* ]] &&
        { __pyvirt_find "$command" "*$((count + 1))" || __pyvirt_find "$command" '*'; }; then
        __pyvirt_value "$__pyvirt_shape"
    else
        __pyvirt_names "$command" "$count"
    fi
    # Readline replaces only what stands behind the last of its separators.
    word=$prefix$__pyvirt_cur
    line=''
    for reply in = :; do
        if [[ $COMP_WORDBREAKS == *$reply* && $word == *$reply* ]]; then
            reply=${word%"$reply"*}$reply
            [[ ${#reply} -gt ${#line} ]] && line=$reply
        fi
    done
    for count in "${!COMPREPLY[@]}"; do
        reply=$prefix${COMPREPLY[count]}
        COMPREPLY[count]=${reply#"$line"}
    done
}
complete -F _pyvirt pyvirt
