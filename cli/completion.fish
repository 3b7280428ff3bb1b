# Completion of pyvirt for fish; made by: pyvirt completion fish
# A row is: command, word, what its value is (cli/grammar.py), text.
set -g __pyvirt_rows \
@ROWS@

# Print what the value of word $argv[2] of command $argv[1] is; fail where there is none.
function __pyvirt_find
    set -l key (string escape --style=regex -- $argv[1]\t$argv[2]\t)
    set -l row (string match -r -- "^$key.*" $__pyvirt_rows)
    or return 1
    string split -f 3 \t -- $row[1]
end

# Print the values of kind $argv[1] that go on from $argv[3], behind the text $argv[2].
function __pyvirt_kind
    switch $argv[1]
        case _
        case @
            for path in (__fish_complete_path $argv[3])
                echo $argv[2]$path
            end
        case /
            for path in (__fish_complete_directories $argv[3])
                echo $argv[2]$path
            end
        case '#*'
            set -l option (string split / -- (string sub -s 2 -- $argv[1]))
            set -l before ''
            for word in (commandline -opc)
                set -l text $word
                if string match -q -- '-*=*' $word
                    set before (string replace -r '=.*' '' -- $word)
                    set text (string replace -r '^[^=]*=' '' -- $word)
                end
                if test (string replace -r '^--' - -- $before) = -$option[1]
                    and test (string sub -l (string length -- $option[2]) -- $text) = "$option[2]"
                    set -l id (string match -r -g '(?:^|,)id=([^,]*)' -- $text)
                    and echo $argv[2]$id
                end
                set before $word
            end
        case '*'
            for word in (string split '|' -- $argv[1])
                echo $argv[2]$word
            end
    end
end

# Print values of the forms $argv[1], of which $argv[2] is typed, behind the text $argv[3].
function __pyvirt_value
    set -l given (string match -r '^.*,' -- $argv[2]; or echo)
    set -l last (string replace -r '^.*,' '' -- $argv[2])
    set -l head (string replace -r ',.*' '' -- $argv[2])
    set -l told
    for form in (string split ' ' -- $argv[1])
        set -l parts (string split , -- $form)
        set -l fixed $parts[1]
        set -l kind ''
        switch $fixed
            case '*:*'
                set kind (string replace -r '^[^:]*:' '' -- $fixed)
                set fixed (string replace -r ':.*' : -- $fixed)
            case @ _ /
                set kind $fixed
                set fixed ''
        end
        set -l begins (string sub -l (string length -- "$fixed") -- "$head")
        if test -z "$given" -a -n "$parts[1]"
            if test -n "$kind" -a "$begins" = "$fixed"
                set -l rest (string sub -s (math 1 + (string length -- "$fixed")) -- $argv[2])
                __pyvirt_kind $kind $argv[3]$fixed "$rest"
            else
                echo $argv[3]$fixed
            end
            continue
        end
        test -z "$fixed"; or test "$head" = "$fixed"; or test -n "$kind" -a "$begins" = "$fixed"
        or continue
        for member in $parts[2..]
            set -l name (string replace -r '=.*' '' -- $member)
            set -l value (string match -r -g '^[^=]*=(.*)' -- $member)
            if test -n "$value"; and test (string replace -r '=.*' = -- "$last") = "$name="
                contains -- = $told
                or __pyvirt_kind $value $argv[3]$given$name= (string replace -r '^[^=]*=' '' -- $last)
                set -a told =
            else if not contains -- $name $told
                and not contains -- $name (string replace -r '=.*' '' -- (string split , -- "$given"))
                set -a told $name
                test -n "$value"; and set name $name=
                echo $argv[3]$given$name
            end
        end
    end
end

# Print the options of command $argv[1], and its sub-commands if the next of its words is $argv[3]=1.
function __pyvirt_names
    set -l dash ''
    string match -q -- '--*' $argv[2]; and set dash -
    for row in $__pyvirt_rows
        set -l fields (string split \t -- $row)
        if test $fields[1] = $argv[1]
            if string match -q -- '-*' $fields[2]
                printf '%s\t%s\n' $dash$fields[2] $fields[4]
            else if test $argv[3] = 1; and test $fields[3] = '!'
                printf '%s\t%s\n' $fields[2] $fields[4]
            end
        end
    end
end

function __pyvirt
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l command pyvirt
    set -l pending ''
    set -l count 1
    for word in $words[2..]
        if string match -q -- '-?*' $word
            set pending (__pyvirt_find $command (string replace -r '^--' - -- $word))
            string match -q -r '^[-?]' -- "$pending"; and set pending ''
        else if test -n "$pending"
            set pending ''
        else if test (__pyvirt_find $command $word; or echo) = '!'
            set command "$command $word"
            set count 1
        else
            set count (math $count + 1)
        end
    end
    set -l option (string replace -r '^--' - -- (string replace -r '=.*' '' -- $current))
    if not string match -q -- '-*' $current
        if test -n "$pending"
            __pyvirt_value $pending "$current" ''
            return
        end
        set pending (__pyvirt_find $command "*$count"; or __pyvirt_find $command '*')
        and __pyvirt_value $pending "$current" ''
        and return
    else if string match -q -- '-*=*' $current
        set pending (__pyvirt_find $command $option)
        and __pyvirt_value (string replace -r '^\?' '' -- $pending) \
            (string replace -r '^[^=]*=' '' -- $current) (string replace -r '=.*' = -- $current)
        return
    end
    __pyvirt_names $command "$current" $count
end

complete -c pyvirt -f -a '(__pyvirt)'
