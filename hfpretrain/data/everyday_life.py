"""Texts of the builtin corpus `everyday`: home and food, family and pets, school, work and play.

Templates are separated by blank lines; everyday.py explains the notation. `kid` may be "I", so what a kid does is told
in the past tense, where the verb is the same for everyone.
"""

LIFE = {
    "home *9": """
        {Past} {kid} cleaned {his} room. {He} [picked up the toys|folded the clothes|made the bed|sorted the books]
        and [swept the floor|wiped the dust from the desk|watered the plant on the window sill]. {Hiding_place} {he}
        found [a small|an old|a forgotten] {lost}[ that had been missing {long_time}|]. {His} {relative} was very
        {happy}.

        The [kitchen|living room|bedroom|study|dining room|guest room] in {adult.s} house is {quality}[ and smells of
        {smell}|]. There is {a color} [table|shelf|chest|cupboard|desk|bookcase|stool] next to the [door|window|wall],
        and on it stands {a material} [box|bowl|candlestick|clock|picture frame]. From the window [one can see|you can
        see|there is a view of] {view}.

        {Past} the [sink|washing machine|heater|refrigerator|doorbell|vacuum cleaner] stopped working. {Adult} looked
        for {a tool} and {found_help}. [It took {minutes}.|The repair took all {part_of_day}.] Now it runs [like
        new|again|without a sound].

        {Past} {adult} {did_housework}. After that {adult.he} {fixed}. {Adult.he} was {tired}, so {adult.he} [made a
        cup of {hot_drink}|ate {snack}|lay down on the sofa|sat on the balcony] and [read the newspaper|listened to
        the radio|watched the clouds|called an old friend].

        Our family moved into a new [house|apartment] {past}. It is {quality} and has {number}
        [windows|doors|shelves]. My {relative} painted the {room} {color}, and I put {a old_new} {furniture} [into the
        corner|near the window]. [We like it here.|We feel at home already.|Only the stairs are steep.]

        {Kid} heard a strange noise in the {room}. First {he} thought that it was [a thief|a ghost|the wind|a mouse].
        Then {he} turned on the light and saw [a cat on the table|an open window|a dripping tap|an old clock]. {He}
        [laughed|took a deep breath|shook {his} head] and went back to [bed|sleep|{his} book].

        On {weekday} {friend} and {kid} wanted to build {a house_project}. {They} [needed|bought|borrowed] {a tool},
        {number} nails, and some [wood|boards|paint]. {Friend} [held the boards|measured twice|drew a plan] while
        {kid} [hammered|sawed|mixed the paint]. By {weekday} it was finished, and it looked [beautiful|solid|a little
        crooked|perfect].

        It was dark because the lights had gone out. {Kid} lit {small_number} candles and put them on the
        [table|shelf|window sill|piano|floor]. {His} {relative} told a story about {book_about}. When the lights came
        back after {minutes}, nobody wanted to stop.

        {Adult} bought {a old_new} {furniture} at the flea market. It was too [wide|tall|heavy] for the {room}, so
        {adult.he} [put it into the garage|gave it to {adult.his} sister|asked two friends for help]. [Now it looks
        perfect there.|In the end everybody was {happy}.]
        """,
    "food *9": """
        {Past} {kid} [made|cooked|prepared] {main_dish} for [lunch|dinner]. First {he} [washed|prepared|cooked] the
        {vegetable}. Then {he} added {spice} and a little {herb}. It was {tasty}, and everyone [asked for more|cleaned
        the plate|wanted the recipe].

        {Adult} bakes {a baked} {often}. {Adult.he} uses [fresh eggs|real butter|brown sugar|an old recipe|only the
        best flour], and the kitchen smells of {smell}. [The neighbors always get a piece.|Nobody can wait until it is
        cool.|The first slice is always for me.]

        To make jam from {jam_fruits}, wash the fruit and [cut it into pieces|remove the stems]. Cook it with sugar
        for {minutes} and stir it [slowly|from time to time|well]. Fill the jam into clean jars. It keeps until next
        {season}.

        For a [simple|quick|cheap|healthy] [lunch|dinner] you need {x=cuttable}, {spice}, and [oil|butter|cream]. Cut
        the {x} into [small pieces|thin slices|cubes], fry them [slowly|for a few minutes], and serve them with
        [rice|bread|noodles|a little {herb}]. [It is ready in {minutes}.|Even children like it.]

        {Kid} was {hungry} after school. In the kitchen {he} found {snack} and a glass of {cold_drink}. {He} ate
        {how}. [Then {he} did {his} homework.|Soon {he} felt better.|{His} {relative} laughed and gave {him} {snack}.]

        In the restaurant {friend} ordered {main_dish}, and {kid} ordered a [pizza|salad|small steak|bowl of broth].
        The waiter [mixed up|forgot|dropped] the plates, so [{they} had to wait {minutes}|{they} got a free
        dessert|{they} shared everything]. [The food was {tasty}.|{They} left a good tip all the same.]

        My {relative} does not like {vegetable}, but {relative.he} loves {fruits}. That is why there is always a bowl
        of them on the table. [I prefer {sweet}.|I like both.|{Relative.he} eats them with yogurt.]

        The {meal} was {tasty}. We had {main_dish} with {vegetable}, and for dessert there was {a baked}. [After that
        nobody could move.|My {relative} washed the dishes.|We talked until late.]

        Because the refrigerator was empty, {kid} went to the [store|market] and bought {grocery}, {vegetable}, and
        {fruits}. At home {he} noticed that {he} had forgotten the [salt|onions|flour|pepper]. [{His} neighbor had
        some.|{He} had to go back.|So there was {snack} for {meal}.]

        It is easy to make [tea|mint tea|ginger tea|herbal tea|coffee]. Boil some water, take a clean [cup|mug|pot],
        and wait {small_number} minutes. [Some people add honey.|Be careful, it is hot.|It is best on a cold
        {part_of_day}.|My {relative} likes it with {sweet}.]
        """,
    "pets *7": """
        {Kid} had {a pet} called {n=pet_name}. Every {part_of_day} {he} gave {n} {pet.food}. When {n} was {happy}, it
        {pet.act}. At night it slept {pet.spot}.

        {Past} {kid.s} {pet} {pet.act} and {pet.sound}. [It was hungry, so {kid} gave it {pet.food}.|Somebody was at
        the door, so {kid} went to look.|It had seen {a bird} outside, so {kid} closed the curtain.|It wanted to play,
        so {kid} fetched {pet.toy}.|It wanted to sleep {pet.spot}, so {kid} turned off the light.][ {Friend} laughed.|
        Then it was quiet again.| The {pet} was called {pet_name}.|]

        {Kid} could not find {his} {pet} anywhere. {He} looked {hiding_place}, in the {room}, and in the yard. At last
        {he} heard something: the {pet} {pet.sound} {pet.spot}. {He} was so {happy} that {he} gave it {pet.food}.

        {Friend} got {a pet} for {friend.his} birthday. {Friend.he} named it {n=pet_name} and bought {pet.toy} for it.
        At first {n} was shy, but after {small_number} days it {pet.act} whenever {friend} came home.

        The {pet} was ill and did not touch its food. {Kid} took it to the vet. The vet looked at it {how} and [gave
        it some medicine|said that it had eaten too much|found a thorn in its foot]. {Small_number} days later it
        {pet.act} again, and {kid} was {happy}.

        A pet needs time and care. [Our {pet}|My {pet} {pet_name}|{Friend.s} {pet}] gets {pet.food} twice a day, and
        it loves {pet.toy}. [It is {small_number} years old.|It has lived with us {long_time}.|It knows my voice.|It
        sleeps {pet.spot}.|When we are away, our neighbor looks after it.]

        It was {weather.adj} outside, so the {pet} stayed {pet.spot}. {Adult} {weather.inside} and talked to it. [Soon
        both were asleep.|The {pet} {pet.sound} softly.|It was {a good_time} {part_of_day}.]
        """,
    "school *8": """
        In the {subject.name} lesson {kid} learned {subject.learned}. Then the class {subject.task}. [It was not
        easy.|The bell rang too soon.|The teacher praised everyone.|{Friend} was the first to finish.]

        {Kid} forgot {his} {school_item} at home. {Friend} had two and lent {him} one. [After school {he} gave it back
        and said thank you.|That was lucky, because the class {subject.task} that day.|{He} promised to {promised}.]

        {Past} {kid} wrote a test in {subject.name}. {He} had studied for {small_number} days, so {he} was not afraid.
        The [first|last] question was [easy|hard|the longest], but {he} found the answer. {He} got a good grade and
        was {happy}.

        {Kid} did not understand the homework, so {he} asked {his} {relative}. {They} sat down at the [desk|kitchen
        table] and looked at the first exercise together. [After {minutes} it was clear.|Suddenly it was quite
        simple.] "{Praise}!" said {his} {relative}.

        The bell rings, and the children run into the yard. Some play {game}, others [eat {snack}|talk in a corner|sit
        under the {tree}]. {Friend} has lost {a school_item}, and everybody helps to look for it. [It was in the
        classroom.|At last somebody finds it next to the door.|It is in {friend.his} bag.]

        Our new teacher comes from {country}. [He|She] teaches {subject.name} and is very {kind}. Yesterday we
        {subject.task}, and [nobody looked at the clock|even {friend} liked it|we forgot the time].

        {Kid} was {sad} on the first day at the new school, because {he} knew nobody. During the break a
        {friend.child} called {friend} sat down next to {him} and shared {snack}. [{They} talked about
        {book_about}.|{They} played {game}.|Soon {they} laughed together.] {Closing}

        Our class went to the [museum|castle|library|town hall|theater] {past}. We [took the bus|took the
        tram|walked|went by bicycle], and the trip took {minutes}. A guide showed us {old_things}. {Friend} asked
        {number} questions. [The teacher was proud of us.|On the way back we sang.|We ate our sandwiches outside.]

        In the school library {kid} borrowed a book about {book_about}. {He} read it in {small_number} days. [It was
        so exciting that {he} forgot to eat.|The end was sad.|{He} liked the pictures most.|Now {friend} is reading
        it.]
        """,
    "work *9": """
        {A job} works {job.place}. [Every day|As a rule|On most days] {a job} {job.does}. [Everybody needs {job.tool}
        for that kind of work.|It is hard work.|It takes years to learn.]

        {Adult} is {a job}. {Adult.he} works {job.place} and {job.does}. Yesterday {adult.he} {job.did}. [{Adult.he}
        came home {tired}.|{Adult.he} likes the work.|{Adult.his} boss was {happy}.]

        "What do you want to be?" the teacher asked. "I want to be {a job}," said {friend}. "Then I can work
        {job.place}." [The class listened.|{Kid} wanted to be [a clown|a queen|an astronaut|a pirate|a diver|a
        mayor].|The others nodded.]

        {Friend.s} {relative} is {a job} and dreams of something: to {job.wish}. [Perhaps next year it will come
        true.|Until then there is a lot to do.|Everyone smiles about it.]

        {Adult} has a new job. {Adult.he} starts {early} and stops {clock_end}. [The people there are {kind}.|The
        office is {quality}.|The way to work takes {minutes}.] On [Mondays|Tuesdays|Fridays] {adult.he} can work at
        home.

        Every {job} needs {job.tool}. Without it one cannot do much. [It must always be within reach.|It should be
        kept clean.|A good tool is half the work.]

        {Past} the {job} {job.did}. It was a long day, and {work_trouble}. [In the end everything was all right.|A
        friend came to help.|At eight it was time to go home.]

        {Adult} missed an important meeting because the {transport.name} {transport.late}. {Adult.his} boss was
        [angry|calm|surprised], but {adult.he} explained everything. [They met again the next day.|They talked on the
        phone.|After {minutes} they laughed about it.]

        {Friend} earns some money after school. {Friend.he} [walks dogs|delivers newspapers|washes cars|mows
        lawns|looks after small children|picks {fruits}] {often}. {Friend.he} is saving for {a gift}.

        The computer in the office was slow. {Adult} [started it again|called a programmer|deleted old files|bought
        more memory], but nothing helped. Then {adult.he} saw that [the cable was loose|a cup of coffee stood on the
        keyboard|the fan was full of dust]. After that it worked.
        """,
    "family *8": """
        [My aunt|Our neighbor|My friend Carla|My teacher] has {small_number} children. The oldest likes {hobby.ing},
        the youngest [swimming|dancing|chess|football|math]. [On weekends they are all at home.|They share one
        room.|It is never quiet there.] She is very proud of them.

        My {relative} is {kind} and [wise|strong|full of ideas|never in a hurry]. {Relative.he} [tells me stories
        about {book_about}|teaches me {game}|cooks {main_dish} for me|helps me with {subject.name}|takes me to
        {outdoors}]. I visit {relative.him} {often}.

        Everyone in our family has a hobby. My {relative} likes {hobby.ing} {hobby.place}. Last month {relative.he}
        bought {hobby.thing}. The result is {hobby.result}. [My [brother|sister] collects
        [stamps|coins|shells|postcards|old maps].|I like {game} better.|The dog just sleeps.]

        [Yesterday|Last {weekday}|The other day] was {kid.s} birthday. {His} {relative} gave {him} {a gift}, and from
        {friend} {he} got {a x=toy}. {He} tried the {x} at once. [Then {friend} ate all the {sweet}.|There were
        {number} guests.|It was the best present of all.] {Closing}

        The baby cried at night. {Adult} got up, [warmed some milk|sang a song|changed its diaper|carried it around],
        and after {minutes} it was asleep again. In the morning {adult.he} was {tired}, but the baby smiled.

        {Friend} and {friend.his} [brother|sister] wanted the same {toy}, so they quarreled. Their mother said, "[Take
        turns|Play together|One of you can have it today, the other tomorrow]." [They tried it, and it worked.|At
        first they were angry.|They thought about it for a while.] In the end they played together [happily|for
        {minutes}|until dinner].

        When my grandmother was young, there was no [television|telephone|computer|bathroom] in the house. In the
        evening the whole family [sat around the stove|sang old songs|shelled beans and told stories|played
        cards|listened to one small radio]. "Life was simpler then," she says, "but it was not always easy." [I like
        to hear about it.|She was born in {country}.|Her father was {a job}.]

        Every {weekday} the whole family meets for {meal}. [My uncle brings {drink}.|My aunt brings {a baked}.|Each
        guest brings something.] They talk about [work|school|old times|the garden|the news], and later they play
        {game}.

        {Kid} wrote a letter to {his} [grandmother|aunt|uncle|cousin] in {country}. {He} wrote about [the new
        school|the {pet}|the last holidays|the broken window]. Two weeks later an answer came with {number} photos.

        The {party.name} was {good_time}. There were {party.deco} everywhere, and {party.custom}. {Adult} had made
        {party.food}. [At the end everyone helped to clean up.|The neighbors came too.|We got home very late.]
        """,
    "play *8": """
        After school {friend} and {kid} played {game} in the [living room|garden|yard|attic|hall|park]. {Friend} won
        [twice|three times|every time], and {kid} was a little {sad}. [Then {they} tried something else.|{His}
        {relative} brought {sweet}.|"Next time you will win," said {friend}.]

        {Past} {kid} played {sport} {sport.place}. {He} {sport.did}, and the others [cheered|shook {his}
        hand|clapped]. [Afterwards {his} legs were heavy.|The other team was {sad}.|The score was {small_number} to
        one.] {Closing}

        {Friend} plays {sport} every {weekday}. For that {friend.he} needs {sport.gear} and good shoes. The coach is
        {kind}. [The next game is in {month}.|Last year the team won a cup.|It is a fast game, and nobody stands
        still.]

        {Kid} started to learn the {instrument} {past}. At first it sounded [terrible|like an angry cat|very strange],
        because {his} fingers were too slow for {instrument.part}. {He} practiced for {minutes} every day. Now the
        {instrument} sounds {instrument.sound}, and {his} {relative} likes to listen.

        The {instrument} is {instrument.sound}. {Friend} plays it in the school band. On {weekday} there is a concert
        in the {building}. [All the tickets are sold.|{Friend.he} is a little nervous.|{Friend.his} whole family will
        be there.]

        {Adult} spends the evenings {hobby.place}, because {adult.he} loves {hobby.ing}. With {hobby.thing} and a lot
        of patience {adult.he} has finished {hobby.result}. [It is [beautiful|impressive|quite good|better than the
        last one].|{Adult.he} gave it to me.|The next one will be even better.]

        On {weekday} {friend} and {kid} went to the cinema to see {film}. The tickets cost
        [eight|nine|ten|eleven|twelve] dollars. {They} bought [popcorn|chips|lemonade] and sat in the
        [first|last|third] row. [The film was so sad that {friend} cried.|The film was so funny that everybody
        laughed.|In the middle {kid} fell asleep.]

        {Friend} made [a puppet|a doll|a toy boat|a toy car|a robot|a small castle|a mask|a kite] out of
        [wood|paper|cardboard|old boxes] for {friend.his} little [brother|sister]. It took {small_number} days.
        "{Thanks}!" [said|whispered|cried] the child and [ran into the yard|did not put it down all day|took it to
        bed].

        The book is about {book_about}. {Kid} got it from {his} {relative} and read it [under the blanket|in the
        bathtub|on the train|in the hammock|in one night]. At the most exciting point [somebody called {him}|the light
        went out|dinner was ready|the doorbell rang]. {He} had to wait until the next {part_of_day} to find out how it
        ended.
        """,
    "health *5": """
        {Past} {kid} had {illness.name}. {Illness.sign}. {He} {illness.cure} and {illness.rest}. [After that {he} felt
        much better.|{Friend} came to visit.|{His} {relative} read a story to {him}.]

        "How are you today?" asked the doctor. "Not very well," said {friend}. "I have {illness.name}." The doctor
        wrote a prescription and said, "[Stay in bed|Drink a lot of tea|Come back on {weekday}|Eat more fruit|Try to
        rest]."

        It is healthy to eat {x=vegetable} and {fruits}, to drink enough water, and to sleep eight hours. [Sport is
        good for the heart.|Too much sugar is bad for the teeth.|A walk in the fresh air helps, too.|Wash your hands
        before you eat.]

        {Adult} wanted to live more healthily. First {adult.he} [gave up {sweet}|bought running shoes|went to bed
        earlier], then {adult.he} [learned to swim|walked to work|ate {vegetable} every day]. After {number} weeks
        {adult.he} felt [younger|stronger|much better].

        {Kid} was {tired} {because_tired}. So {he} [went to bed early|took a hot bath|lay down on the grass|drank warm
        milk] and slept for [nine|ten|eleven|twelve] hours. The next morning {he} was {happy}.
        """,
    "routine *5": """
        {Adult} gets up {early}. First {adult.he} [takes a shower|opens the curtains|feeds the {pet}|makes the bed],
        then {adult.he} eats [bread and jam|an egg|yogurt with {fruits}|a roll with cheese] and drinks {hot_drink}.
        After that {adult.he} [reads the news|waters the plants|goes to work|takes the [bus|tram|subway] to the
        office]. [It is the same every day.|On Sundays {adult.he} sleeps longer.]

        [In the morning|At eight o'clock|Before sunrise] the town wakes up. The {job} is already at work, and the
        first [bus|tram|train] is [full|still empty|right on time]. Children [run to school|look for their shoes|eat
        their cereal]. [A {bird} sits on the wire.|The {shop} opens its doors.|It is going to be {a weather.adj} day.]

        On Monday we [go swimming|wash the car|play {game}], on Tuesday we [visit my {relative}|go shopping|clean the
        {room}], and on Wednesday we cook {main_dish}. The week is always full. [Only on Sunday do we rest.|But we
        like it that way.]

        Before going to bed, {friend} [brushes {friend.his} teeth|puts on {friend.his} pajamas|packs {friend.his} bag]
        and reads a few pages about {book_about}. [Then the light goes out.|Sometimes {friend.he} falls asleep over
        the book.|The window stays open.] {Friend.he} often dreams about [flying|the sea|{book_about}|a house made of
        {sweet}|talking animals].

        Every year {adult} {yearly}. This year {adult.he} [had no time|was ill|was away], so {kid} did it. It took a
        whole {part_of_day}. "{Praise}!" said {adult} in the evening.
        """,
}
