# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Plans (recipe/plans.yml) and colours: what a new database may have.

plans_file() {
    printf '%s\n' "${HERD_PLANS:-$scripts/../recipe/plans.yml}"
}

# plans FILTER [JQ-OPTION...]
plans() {
    need yq
    yq -c . "$(plans_file)" 2>/dev/null | jq -er "$@" || die 1 "the plans in $(plans_file) cannot be read" "it is YAML: plan: {setting: value}"
}

plan_names() {
    plans 'keys_unsorted | join(", ")'
}

check_plan() {
    [[ $(plans 'has($p) | tostring' --arg p "$1") == true ]] || die 2 "there is no plan $1" "plans: $(plan_names)"
}

# As `pgmahout plan` reads them
plan_settings() {
    plans '.[$p] | to_entries[] | "\(.key) = '\''\(.value)'\''"' --arg p "$1"
}

colours=(AMBER AQUA BLACK BLUE BRONZE BROWN CHARCOAL COBALT COPPER CRIMSON CYAN GOLD GRAY GREEN IVORY JADE MAROON MAUVE
    NAVY OLIVE ONYX ORANGE PINK PURPLE RED ROSE SILVER TEAL VIOLET WHITE YELLOW)

# choose_colour [WANTED]: into $colour, a free one
choose_colour() {
    local taken candidate
    taken=" $(about '[.config | keys[] | colour | values] | join(" ")') "
    colour=${1^^}
    colour=${colour#HEROKU_POSTGRESQL_}
    colour=${colour%_URL}
    if [[ -n $colour ]]; then
        [[ $colour =~ ^[A-Z][A-Z0-9_]{0,30}$ && $colour != DATABASE ]] || usage_error "'$1' cannot be a colour" "letters, digits and _"
        [[ $taken != *" $colour "* ]] || die 1 "HEROKU_POSTGRESQL_$colour is attached already" "choose another colour; herd addons shows them"
        return
    fi
    for candidate in "${colours[@]}"; do
        if [[ $taken != *" $candidate "* ]]; then
            colour=$candidate
            return
        fi
    done
    die 1 "all ${#colours[@]} colours are taken" "name one of your own with --as"
}
