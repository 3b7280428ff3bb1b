#compdef pyvirt
# Completion of pyvirt for zsh; made by: pyvirt completion zsh
# A row is: command, word, what its value is (cli/grammar.py), text.
typeset -ga __pyvirt_rows
__pyvirt_rows='
@ROWS@
'
__pyvirt_rows=(${(f)__pyvirt_rows})

# Put into shape what the value of word $2 of command $1 is; fail where there is none.
__pyvirt_find() {
    local key=$1$'\t'$2$'\t'
    local -a found
    found=(${(M)__pyvirt_rows:#$key*})
    shape=${${found[1]#$key}%%$'\t'*}
    (($#found))
}

# Offer the values of kind $1.
__pyvirt_kind() {
    local word before='' text option=${1#\#}
    local -a found
    case $1 in
    _) ;;
    @) _files ;;
    /) _files -/ ;;
    \#*)
        for word in $given_words; do
            text=$word
            [[ $word == -*=* ]] && before=${word%%=*} text=${word#*=}
            if [[ ${before/#--/-} == -${option%%/*} && $text == ${option#*/}* && ,$text == *,id=* ]]; then
                text=,$text
                text=${text#*,id=}
                found+=(${text%%,*})
            fi
            before=$word
        done
        compadd -S '' -a found
        ;;
    *)
        found=(${(s:|:)1})
        compadd -S '' -a found
        ;;
    esac
}

# Offer values of the forms $1: first parts, members, or what a member may be.
__pyvirt_value() {
    local form fixed kind member name given='' value=$PREFIX head
    local -a parts words_done words_open members bare
    local -A seen
    head=${value%%,*}
    if [[ $value == *,* ]]; then
        given=${value%,*},
        compset -P '*,'
    fi
    for form in ${(s: :)1}; do
        parts=("${(@s:,:)form}")
        fixed=$parts[1] kind=''
        case $fixed in
        *:*) kind=${fixed#*:} fixed=${fixed%%:*}: ;;
        [@_/]) kind=$fixed fixed='' ;;
        esac
        if [[ -z $given && -n $parts[1] ]]; then
            if [[ -n $kind && $head == $fixed* ]]; then
                [[ -n $fixed ]] && compset -P $fixed
                __pyvirt_kind $kind
                [[ -n $fixed ]] && return
            elif [[ -n $kind || $#parts -gt 1 ]]; then
                words_open+=($fixed)
            else
                words_done+=($fixed)
            fi
            continue
        fi
        [[ -z $fixed || $head == $fixed || (-n $kind && $head == $fixed*) ]] || continue
        for member in $parts[2,-1]; do
            name=${member%%=*}
            if [[ $member == *=* && $PREFIX == $name=* ]]; then
                compset -P '*='
                __pyvirt_kind ${member#*=}
                return
            elif [[ ,$given != *,${name}[=,]* && -z $seen[$name] ]]; then
                seen[$name]=1
                if [[ $member == *=* ]]; then members+=($name); else bare+=($name); fi
            fi
        done
    done
    compadd -a words_done
    compadd -S '' -a words_open
    compadd -S '' -a bare
    compadd -S '=' -q -a members
}

# Offer the options of command $1, and its sub-commands where none of its words ($2) stands.
__pyvirt_names() {
    local row dash=''
    local -a fields options commands
    [[ $PREFIX == --* ]] && dash=-
    for row in $__pyvirt_rows; do
        fields=("${(@ps:\t:)row}")
        [[ $fields[1] == $1 ]] || continue
        if [[ $fields[2] == -* ]]; then
            options+=("$dash${fields[2]}:${fields[4]}")
        elif [[ $fields[3] == '!' && $2 == 0 ]]; then
            commands+=("${fields[2]}:${fields[4]}")
        fi
    done
    (($#commands)) && _describe -t commands command commands
    (($#options)) && _describe -t options option options
}

_pyvirt() {
    local shape word command=pyvirt pending='' count=0
    local -a given_words
    given_words=(${(Q)words[2,CURRENT-1]})
    for word in $given_words; do
        if [[ $word == -?* ]]; then
            pending=''
            __pyvirt_find $command ${word/#--/-} && [[ $shape != [-?]* ]] && pending=$shape
        elif [[ -n $pending ]]; then
            pending=''
        elif __pyvirt_find $command $word && [[ $shape == '!' ]]; then
            command+=" $word"
            count=0
        else
            ((++count))
        fi
    done
    word=${PREFIX/#--/-}
    if [[ -n $pending && $word != -* ]]; then
        __pyvirt_value $pending
    elif [[ $word == -*=* ]] && __pyvirt_find $command ${word%%=*}; then
        compset -P 1 '*='
        __pyvirt_value ${shape#\?}
    elif [[ $word != -* ]] &&
        { __pyvirt_find $command "*$((count + 1))" || __pyvirt_find $command '*' }; then
        __pyvirt_value $shape
    else
        __pyvirt_names $command $count
    fi
}

# This file is run by its name from a folder of fpath, or read by a start-up file.
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _pyvirt "$@"
else
    compdef _pyvirt pyvirt
fi
